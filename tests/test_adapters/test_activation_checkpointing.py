# SPDX-License-Identifier: Apache-2.0
"""Recomputed blocks train the same expert."""
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from mmcv.cnn import is_norm
from torch import Tensor

import mmseg.models  # noqa: F401
from mmseg_mile.adapters.lora_expert_backbone import LoRAExpertBackbone

FAMILIES = {
    'mit': dict(
        type='MixVisionTransformer', embed_dims=8, num_heads=[1, 2, 4, 8],
        num_layers=[2, 1, 1, 1], drop_path_rate=0.5),
    'swin': dict(
        type='SwinTransformer', embed_dims=12, depths=[2, 2, 1, 1],
        num_heads=[1, 2, 3, 4], window_size=4),
    'resnet': dict(type='ResNetV1c', depth=18, stem_channels=8,
                   base_channels=8),
    'mobilenet_v2': dict(
        type='MobileNetV2', widen_factor=0.25, out_indices=(1, 2, 4, 6)),
}  # yapf: disable
# What torch says about mmseg's call of its checkpoint function.
pytestmark = pytest.mark.filterwarnings('ignore:.*use_reentrant')


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


@pytest.fixture
def norms() -> Callable[[LoRAExpertBackbone], dict[str, Tensor]]:
    """Buffers of all norm layers."""
    return lambda backbone: {
        f'{name}.{key}': value
        for name, module in backbone.named_modules() if is_norm(module)
        for key, value in module.named_buffers()
    }


@pytest.mark.parametrize('kind', FAMILIES)
def test_gradients_are_the_same(kind):
    plain = step(in_training(FAMILIES[kind]))
    recomputed = step(in_training(FAMILIES[kind], with_cp=True))
    assert plain
    torch.testing.assert_close(recomputed, plain)


def kept_values(backbone: LoRAExpertBackbone) -> int:
    """Values that a forward keeps for backward."""
    sizes = {}
    with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.update({t.data_ptr(): t.numel()}) or t,
            lambda t: t):
        backbone(torch.randn(2, 3, 64, 64).double())
    return sum(sizes.values())


def test_less_is_kept_for_backward():
    plain = kept_values(in_training(FAMILIES['mit']))
    assert kept_values(in_training(FAMILIES['mit'], with_cp=True)) < plain / 2


def test_statistics_of_an_owned_norm_count_each_batch_once(norms):
    plain, recomputed = (
        in_training(FAMILIES['resnet'], train_norm=True, with_cp=with_cp)
        for with_cp in (False, True))
    for _ in range(2):
        step(plain)
        step(recomputed)
    torch.testing.assert_close(norms(recomputed), norms(plain))


def test_norms_that_no_expert_owns_keep_their_statistics(norms):
    backbone = in_training(FAMILIES['resnet'], with_cp=True)
    before = {k: v.clone() for k, v in norms(backbone).items()}
    step(backbone)
    assert all(torch.equal(v, before[k]) for k, v in norms(backbone).items())


def test_backbone_that_cannot_recompute_is_refused():
    config = dict(
        type='MSCAN', embed_dims=[8, 16, 24, 32], depths=[1, 1, 1, 1],
        norm_cfg=dict(type='BN'))  # yapf: disable
    with pytest.raises(ValueError, match='with_cp=True.*MSCAN.*leave'):
        LoRAExpertBackbone(config, lora=dict(r=2, lora_alpha=4), with_cp=True)
