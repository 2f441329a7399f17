# SPDX-License-Identifier: Apache-2.0
"""Passes that stop early, and passes that recompute their blocks.

That early outputs are the backbone's own is tested over many backbones in
``test_backbone_families.py``.
"""
from __future__ import annotations

import copy

import pytest
import torch
from mmcv.cnn import is_norm
from torch import Tensor, nn

import mmseg.models  # noqa: F401
from mmseg.registry import MODELS
from mmseg_mile.adapters.lora_expert_backbone import LoRAExpertBackbone
from mmseg_mile.adapters.stages import EarlyStages

X = torch.linspace(-2, 2, 3 * 64 * 96).view(1, 3, 64, 96).sin()
MIT = dict(
    type='MixVisionTransformer', embed_dims=8, num_heads=[1, 2, 4, 8],
    num_layers=[2, 1, 1, 1], drop_path_rate=0.5)  # yapf: disable
SWIN = dict(
    type='SwinTransformer', embed_dims=12, depths=[2, 2, 1, 1],
    num_heads=[1, 2, 3, 4], window_size=4)  # yapf: disable
RESNET = dict(type='ResNetV1c', depth=18, stem_channels=8, base_channels=8)
MOBILENET = dict(
    type='MobileNetV2', widen_factor=0.25, out_indices=(1, 2, 4, 6))
MSCAN = dict(
    type='MSCAN', embed_dims=[8, 16, 24, 32], depths=[1, 1, 1, 1],
    norm_cfg=dict(type='BN'))  # yapf: disable
VIT = dict(
    type='VisionTransformer', img_size=64, embed_dims=16, num_layers=4,
    num_heads=2, out_indices=(0, 1, 2))  # yapf: disable
# Backbones, and the first module that runs for their third output only.
STEPPING = [(MIT, 'layers.2.0'), (SWIN, 'stages.2'), (VIT, 'layers.2'),
            (RESNET, 'layer3'), (MOBILENET, 'layer4'), (MSCAN, 'block3.0')]


def build(config: dict) -> nn.Module:
    """A backbone in eval mode."""
    backbone = MODELS.build(config)
    # not every `train` of mmseg returns its module
    backbone.eval()
    return backbone


def calls_of(module: nn.Module) -> list:
    """A list that grows with each call."""
    calls: list = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


class Layers(nn.Module):
    """Gives what ``last`` makes of the output of each of its layers."""

    def __init__(self, last=lambda x: x) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(3))
        self.last = last

    def forward(self, x: Tensor) -> list:
        """Three outputs."""
        outs = []
        for layer in self.layers:
            x = layer(x)
            outs.append(self.last(x))
        return outs


@torch.no_grad()
@pytest.mark.parametrize(
    'config, third', STEPPING, ids=[c['type'] for c, _ in STEPPING])
def test_stages_behind_the_last_one_asked_for_do_not_run(config, third):
    backbone = build(config)
    two, three = EarlyStages(backbone, 2), EarlyStages(backbone, 3)
    calls, wanted = calls_of(backbone.get_submodule(third)), backbone(X)
    del calls[:]
    early = two(X)
    assert not calls
    later = three(X)
    assert calls
    for got in (early, later):
        for mine, theirs in zip(got, wanted):
            assert torch.equal(mine, theirs)
            assert mine.stride() == theirs.stride()
    assert (len(early), len(later)) == (2, 3)


@torch.no_grad()
def test_weights_may_change_and_copies_stop_early_too():
    early = EarlyStages(build(MIT), 1)
    backbone, early = copy.deepcopy((early._backbone, early))
    backbone.double()
    for parameter in backbone.parameters():
        parameter.data.add_(0.01)
    calls = calls_of(backbone.layers[1][0])
    x = X.double()
    got, = early(x)
    assert not calls and torch.equal(got, backbone(x)[0])


@torch.no_grad()
@pytest.mark.parametrize(
    'last', [
        lambda x: 2 * x,
        lambda x: [x, x],
        lambda x: x.flatten(1),
    ],
    ids=['computed', 'nested', 'rearranged'])
def test_output_that_no_module_gives_takes_a_whole_pass(last):
    backbone = Layers(last).eval()
    early = EarlyStages(backbone, 1)
    calls = calls_of(backbone.layers[2])
    (got, ), wanted = early(X), backbone(X)[0]
    assert len(calls) == 2
    assert all(map(torch.equal, got, wanted))


class Patches(nn.Module):
    """Drops the rows and columns that fill no patch, as mmseg's do not."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, 4, 4, 4)
        self.norm, self.last = nn.LayerNorm(4), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """One map, from tokens."""
        x = self.project(x)
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        self.last(tokens + 1)
        return tokens.transpose(1, 2).view(x.shape)


@torch.no_grad()
@pytest.mark.parametrize('size, whole', [((64, 32), 0), ((70, 93), 1)])
def test_tokens_that_do_not_fit_the_image_take_a_whole_pass(size, whole):
    backbone = Patches().eval()
    early = EarlyStages(backbone, 1)
    calls, x = calls_of(backbone.last), nn.functional.interpolate(X, size)
    got, = early(x)
    assert len(calls) == whole and torch.equal(got, backbone(x))


@torch.no_grad()
def test_layer_that_runs_twice_is_not_where_the_pass_ends():
    backbone = Layers().eval()
    backbone.layers[1] = backbone.layers[0]
    assert all(map(torch.equal, EarlyStages(backbone, 2)(X), backbone(X)))


@torch.no_grad()
def test_more_outputs_than_there_are_give_all():
    single = nn.Sequential(nn.Conv2d(3, 2, 1)).eval()
    assert len(EarlyStages(Layers().eval(), 9)(X)) == 3
    assert torch.equal(EarlyStages(single, 9)(X)[0], single(X))


@torch.no_grad()
@pytest.mark.parametrize('channels, error', [(3, None), (4, RuntimeError)])
def test_no_hook_stays_behind(channels, error):
    backbone = build(RESNET)
    early = EarlyStages(backbone, 1)
    x = torch.ones(1, channels, 64, 64)
    if error is None:
        early(x)
    else:
        with pytest.raises(error):
            early(x)
    assert not any(m._forward_hooks for m in backbone.modules())


# -- recomputed blocks -------------------------------------------------------

# What torch says about mmseg's call of its checkpoint function.
recomputing = pytest.mark.filterwarnings('ignore:.*use_reentrant')


def in_training(config: dict, **options: object) -> LoRAExpertBackbone:
    """A backbone with the same weights and the same expert every time."""
    torch.manual_seed(1)
    backbone = LoRAExpertBackbone(
        config, lora=dict(r=2, lora_alpha=4), **options).double()
    backbone.add_expert('day')
    backbone.train_expert('day')
    backbone.train()
    with torch.no_grad():
        for name, value in backbone.named_parameters():
            if 'lora_B' in name:
                value.normal_()
    return backbone


def step(backbone: LoRAExpertBackbone) -> dict[str, Tensor]:
    """Gradients of one forward and backward, drop path included."""
    torch.manual_seed(2)
    outs = backbone(torch.randn(2, 3, 64, 64).double())
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    return {
        n: p.grad
        for n, p in backbone.named_parameters() if p.grad is not None
    }


def norm_buffers(backbone: LoRAExpertBackbone) -> dict[str, Tensor]:
    """Copies of the statistics of all norm layers."""
    return {
        f'{name}.{key}': value.clone()
        for name, module in backbone.named_modules() if is_norm(module)
        for key, value in module.named_buffers()
    }


def kept_values(backbone: LoRAExpertBackbone) -> int:
    """Values that a forward keeps for backward."""
    sizes = {}
    with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.update({t.data_ptr(): t.numel()}) or t,
            lambda t: t):
        backbone(torch.randn(2, 3, 64, 64).double())
    return sum(sizes.values())


@recomputing
@pytest.mark.parametrize(
    'config', [MIT, SWIN, RESNET, MOBILENET],
    ids=lambda config: config['type'])
def test_recomputed_gradients_are_the_same(config):
    plain = step(in_training(config))
    assert plain
    torch.testing.assert_close(step(in_training(config, with_cp=True)), plain)


@recomputing
def test_recomputing_keeps_less_for_backward():
    plain = kept_values(in_training(MIT))
    assert kept_values(in_training(MIT, with_cp=True)) < plain / 2


@recomputing
@pytest.mark.parametrize('train_norm', [True, False])
def test_statistics_count_each_batch_once_where_they_train(train_norm):
    plain, recomputed = (
        in_training(RESNET, train_norm=train_norm, with_cp=with_cp)
        for with_cp in (False, True))
    before = norm_buffers(recomputed)
    for _ in range(2):
        step(plain)
        step(recomputed)
    torch.testing.assert_close(norm_buffers(recomputed), norm_buffers(plain))
    moved = [
        k for k, v in norm_buffers(recomputed).items()
        if not torch.equal(v, before[k])
    ]
    assert bool(moved) == train_norm


def test_backbone_that_cannot_recompute_is_refused():
    with pytest.raises(ValueError, match='with_cp=True.*MSCAN.*leave'):
        LoRAExpertBackbone(MSCAN, lora=dict(r=2, lora_alpha=4), with_cp=True)
