# SPDX-License-Identifier: Apache-2.0
"""What must hold for every backbone, on small ones of many families.

Each family learns two experts once; the tests look at what came of it. In
double precision, as random deep networks amplify rounding.
"""
from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mmcv.cnn import is_norm
from torch import Tensor, nn

import mmseg.models  # noqa: F401
from mmseg.registry import MODELS
from mmseg_mile.adapters.adapter import Adapter
from mmseg_mile.adapters.lora_expert_backbone import LoRAExpertBackbone
from mmseg_mile.structures import Routing

BN = dict(type='BN')
HRNET = dict(
    stage1=dict(num_modules=1, num_branches=1, block='BOTTLENECK',
                num_blocks=(1, ), num_channels=(8, )),
    stage2=dict(num_modules=1, num_branches=2, block='BASIC',
                num_blocks=(1, 1), num_channels=(8, 8)),
    stage3=dict(num_modules=1, num_branches=3, block='BASIC',
                num_blocks=(1, 1, 1), num_channels=(8, 8, 8)),
    stage4=dict(num_modules=1, num_branches=4, block='BASIC',
                num_blocks=(1, 1, 1, 1), num_channels=(8, 8, 8, 8))
)  # yapf: disable
TRANSFORMERS = dict(
    mit=dict(
        type='MixVisionTransformer', embed_dims=8, num_heads=[1, 2, 4, 8],
        num_layers=[2, 1, 3, 1], qkv_bias=True),
    swin=dict(
        type='SwinTransformer', embed_dims=12, depths=[2, 1, 1, 1],
        num_heads=[1, 2, 3, 4], window_size=4),
    vit=dict(
        type='VisionTransformer', img_size=64, embed_dims=16, num_layers=2,
        num_heads=2, out_indices=(0, 1)),
    beit=dict(
        type='BEiT', img_size=64, embed_dims=16, num_layers=2, num_heads=2,
        out_indices=(0, 1), init_values=0.1),
    pcpvt=dict(
        type='PCPVT', embed_dims=[8, 16, 24, 32], num_heads=[1, 2, 3, 4],
        patch_sizes=[4, 2, 2, 2], strides=[4, 2, 2, 2],
        mlp_ratios=[2, 2, 2, 2], out_indices=(0, 1, 2, 3), qkv_bias=True,
        depths=[1, 1, 1, 1], sr_ratios=[8, 4, 2, 1], norm_after_stage=False,
        drop_path_rate=0.))  # yapf: disable
CNNS = dict(
    mscan=dict(
        type='MSCAN', embed_dims=[8, 16, 24, 32], depths=[1, 1, 1, 1],
        norm_cfg=BN),
    resnet_dilated=dict(
        type='ResNetV1c', depth=18, stem_channels=8, base_channels=8,
        strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
    mobilenet_v2=dict(
        type='MobileNetV2', widen_factor=0.25, out_indices=(1, 2, 4, 6)),
    mobilenet_v3=dict(
        type='MobileNetV3', arch='small', out_indices=(0, 1, 12),
        norm_cfg=BN),
    hrnet=dict(type='HRNet', norm_cfg=BN, extra=HRNET),
    stdc=dict(
        type='STDCNet', stdc_type='STDCNet1', in_channels=3,
        channels=(8, 16, 32, 64, 64), bottleneck_type='cat', num_convs=4,
        norm_cfg=BN, act_cfg=dict(type='ReLU'), with_final_conv=False),
    bisenet_v2=dict(
        type='BiSeNetV2', detail_channels=(8, 8, 16),
        semantic_channels=(8, 8, 8, 16), semantic_expansion_ratio=2,
        bga_channels=16))  # yapf: disable
FAMILIES = {**TRANSFORMERS, **CNNS}


def run(backbone: nn.Module, x: Tensor) -> list[Tensor]:
    """Give the features, of which some backbones have a single tensor."""
    with torch.no_grad():
        out = backbone(x)
    return [out] if isinstance(out, Tensor) else list(out)


def identical(first: list[Tensor], second: list[Tensor]) -> bool:
    """Compare bit for bit."""
    return len(first) == len(second) and all(
        torch.equal(a, b) for a, b in zip(first, second))


def assert_near(got: list[Tensor], wanted: list[Tensor]) -> None:
    """Compare to 1e-8 of the largest value of each level."""
    assert len(got) == len(wanted)
    for mine, theirs in zip(got, wanted):
        assert (mine - theirs).abs().max() <= 1e-8 * theirs.abs().max()


def settled(backbone: nn.Module, x: Tensor) -> nn.Module:
    """Fit the statistics to ``x``, or the signal of a deep one fades out."""
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    backbone.train()
    run(backbone, x)
    backbone.eval()
    return backbone


def learn(backbone: LoRAExpertBackbone, name: str,
          x: Tensor) -> SimpleNamespace:
    """Train an expert for three steps."""
    backbone.train_expert(name)
    backbone.train()
    trained = {n: p for n, p in backbone.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        out = backbone(x)
        out = [out] if isinstance(out, Tensor) else out
        sum(level.square().mean() for level in out).backward()
        optimizer.step()
    idle = [
        n for n, p in trained.items() if p.grad is None or not p.grad.any()
    ]
    backbone.eval()
    live = run(backbone, x)
    backbone.finish_training()
    return SimpleNamespace(trained=list(trained), idle=idle, live=live)


@pytest.fixture(scope='module', params=FAMILIES)
def family(request):
    """Wrap a backbone and train experts 'one' and 'two'."""
    torch.manual_seed(0)
    facts = SimpleNamespace(
        name=request.param, x=torch.randn(3, 3, 64, 64).double())
    stock = MODELS.build(FAMILIES[request.param]).double()
    facts.stock = settled(stock, facts.x)
    facts.wrapper = wrapper = LoRAExpertBackbone(
        FAMILIES[request.param],
        lora=dict(r=2, lora_alpha=8),
        train_norm=request.param in CNNS).double()
    facts.checkpoint = {k: v.clone() for k, v in stock.state_dict().items()}
    wrapper.load_state_dict(facts.checkpoint, strict=True)
    wrapper.eval()
    facts.base, facts.print = run(wrapper, facts.x), wrapper.fingerprint()
    wrapper.add_expert('one')
    with wrapper.using('one'):
        facts.fresh = run(wrapper, facts.x)
    facts.one = learn(wrapper, 'one', facts.x)
    facts.kept = wrapper.experts['one'].clone()
    wrapper.add_expert('two', init_from='one')
    facts.two = learn(wrapper, 'two', -facts.x)
    return facts


def test_wrapper_is_the_stock_backbone_under_the_stock_keys(family):
    assert_near(family.base, run(family.stock, family.x))
    state = family.wrapper.base_state()
    assert set(state) == set(family.checkpoint)
    assert all(torch.equal(state[k], v) for k, v in family.checkpoint.items())


def test_fresh_expert_equals_the_base_bit_for_bit(family):
    assert identical(family.fresh, family.base)


def test_every_parameter_of_an_expert_gets_a_gradient(family):
    assert len(family.one.trained) >= 2 * len(family.wrapper.targets)
    assert family.one.idle == family.two.idle == []


def test_base_and_expert_one_survive_the_training_of_expert_two(family):
    assert family.wrapper.fingerprint() == family.print
    assert identical(run(family.wrapper, family.x), family.base)
    now = family.wrapper.experts['one']
    for mine, before in ((now.lora, family.kept.lora), (now.norm,
                                                        family.kept.norm)):
        assert set(mine) == set(before)
        assert all(torch.equal(mine[key], before[key]) for key in before)


def test_merged_prediction_is_the_trained_one(family):
    for name, x, facts in (('one', family.x, family.one), ('two', -family.x,
                                                           family.two)):
        with family.wrapper.using(name):
            got = run(family.wrapper, x)
        assert_near(got, facts.live)
        assert not identical(got, run(family.wrapper, x))


def test_mixed_batch_equals_each_image_alone_with_its_expert(family):
    wrapper, x, names = family.wrapper, family.x, ('two', 'one', 'two')
    weights = torch.tensor([[float(n == e) for e in ('one', 'two')]
                            for n in names])
    routing = Routing(('one', 'two'), weights, torch.zeros(3, 2),
                      torch.zeros(3, dtype=torch.bool))
    with wrapper.using(routing):
        mixed = run(wrapper, x)
    for index, name in enumerate(names):
        with wrapper.using(name):
            alone = run(wrapper, x[index:index + 1])
        assert_near([level[index:index + 1] for level in mixed], alone)


def test_first_outputs_need_no_later_stage(family):
    for count in range(1, len(family.base) + 1):
        with torch.no_grad():
            early = family.wrapper.base_features(family.x, count)
        assert identical(list(early), family.base[:count])


def test_disturbing_each_single_adapter_moves_the_output(family):
    wrapper, x = family.wrapper, family.x[:1]
    base, dead = run(wrapper, x), []
    # the layers of a deep one are of the same kinds as those of a small one
    for target in wrapper.targets[::1 + len(wrapper.targets) // 60]:
        down, up = wrapper.experts['one'].factors(target)
        wrapper.experts['probe'] = Adapter(
            {
                f'{target}.lora_A.weight': down,
                f'{target}.lora_B.weight': torch.ones_like(up)
            }, {}, 1.0)
        with wrapper.using('probe'):
            if identical(run(wrapper, x), base):
                dead.append(target)
    del wrapper.experts['probe']
    assert not dead


def test_norm_layers_are_owned_where_they_are_trained(family):
    norms = {
        name: module
        for name, module in family.wrapper.backbone.named_modules()
        if is_norm(module)
    }
    owned = family.wrapper.experts['one'].norm
    assert {k.rpartition('.')[0]
            for k in owned} == (
                set(norms) if family.wrapper.train_norm else set())
    # statistics move in the expert, and not in the base
    assert not [
        key for key, value in owned.items()
        if 'running' in key and torch.equal(value, family.checkpoint[key])
    ]
