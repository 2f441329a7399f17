# SPDX-License-Identifier: Apache-2.0
"""The first outputs of a backbone, without the stages behind them.

That they are the backbone's own outputs is tested over many backbones in
``test_backbone_families.py``.
"""
from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import mmseg.models  # noqa: F401
from mmseg.registry import MODELS
from mmseg_mile.adapters.lora_expert_backbone import EarlyStages

X = torch.linspace(-2, 2, 3 * 64 * 64).view(1, 3, 64, 64).sin()
# Config of a backbone, and a module that runs for its third output first.
STEPPING = dict(
    resnet=(dict(type='ResNetV1c', depth=18, stem_channels=8, base_channels=8),
            'layer3'),
    mobilenet_v2=(dict(type='MobileNetV2', widen_factor=0.25,
                       out_indices=(1, 2, 4, 6)), 'layer4'),
    mit=(dict(type='MixVisionTransformer', embed_dims=8,
              num_heads=[1, 2, 4, 8], num_layers=[1, 1, 1, 1]), 'layers.2.0'),
    swin=(dict(type='SwinTransformer', embed_dims=12, depths=[1, 1, 1, 1],
               num_heads=[1, 2, 3, 4], window_size=4), 'stages.2'),
    mscan=(dict(type='MSCAN', embed_dims=[8, 16, 24, 32],
                depths=[1, 1, 1, 1], norm_cfg=dict(type='BN')), 'block3.0'),
    vit=(dict(type='VisionTransformer', img_size=64, embed_dims=16,
              num_layers=4, num_heads=2, out_indices=(0, 1, 2)), 'layers.2')
)  # yapf: disable


def build(kind: str) -> nn.Module:
    """A backbone in eval mode."""
    backbone = MODELS.build(STEPPING[kind][0])
    # not every `train` of mmseg returns its module
    backbone.eval()
    return backbone


class Sequence(nn.Module):
    """Steps through its layers; the last step of whatever is left differs."""

    def __init__(self, last: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(3))
        self.last = last

    def forward(self, x: Tensor) -> list[Tensor]:
        """Give one output per layer."""
        outs = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i == len(self.layers) - 1 and self.last == 'other':
                x = 2 * x
            if i == 2 or self.last != 'missing':
                outs.append(x)
        if self.last == 'error' and len(outs) < 3:
            raise IndexError
        return outs


def calls_of(module: nn.Module) -> list:
    """A list that grows with each call."""
    calls: list = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@torch.no_grad()
@pytest.mark.parametrize('kind', STEPPING)
def test_stages_behind_the_last_one_asked_for_do_not_run(kind):
    backbone = build(kind)
    two, three = EarlyStages(backbone, 2), EarlyStages(backbone, 3)
    calls = calls_of(backbone.get_submodule(STEPPING[kind][1]))
    assert len(two(X)) == 2
    assert not calls
    assert len(three(X)) == 3
    assert calls


@torch.no_grad()
def test_backbone_itself_keeps_all_its_stages():
    backbone = build('resnet')
    names, wanted = list(backbone.res_layers), backbone(X)
    EarlyStages(backbone, 1)(X)
    assert backbone.res_layers == names
    assert all(torch.equal(a, b) for a, b in zip(backbone(X), wanted))
    assert len(backbone(X)) == 4


@torch.no_grad()
def test_cut_shares_modules_whose_weights_move():
    backbone = build('mit')
    early = EarlyStages(backbone, 1)
    backbone.double()
    for parameter in backbone.parameters():
        parameter.data.add_(0.01)
    x = X.double()
    assert torch.equal(early(x)[0], backbone(x)[0])


@torch.no_grad()
@pytest.mark.parametrize('last', ['other', 'missing', 'error'])
def test_cut_that_gives_other_outputs_is_not_taken(last):
    backbone = Sequence(last).eval()
    early = EarlyStages(backbone, 1)
    calls = calls_of(backbone.layers[2])
    assert torch.equal(early(X)[0], backbone(X)[0])
    assert len(calls) == (2 if last != 'other' else 1)


@torch.no_grad()
def test_shortest_cut_that_gives_the_outputs_is_taken():
    backbone = Sequence('same').eval()
    assert len(EarlyStages(backbone, 2).network.layers) == 2


@torch.no_grad()
def test_backbone_that_steps_through_nothing_runs_whole():
    backbone = nn.Sequential(nn.Conv2d(3, 2, 1)).eval()
    early = EarlyStages(backbone, 1)
    assert early.network is backbone
    assert torch.equal(early(X)[0], backbone(X))


@torch.no_grad()
def test_more_outputs_than_there_are_give_all():
    backbone = Sequence('same').eval()
    assert len(EarlyStages(backbone, 9)(X)) == 3
