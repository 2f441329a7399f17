# SPDX-License-Identifier: Apache-2.0
"""Which layers get an adapter, and which are refused."""
from __future__ import annotations

import pytest
import torch
from mmcv.cnn import ConvWS2d
from torch import Tensor, nn

from mmseg.registry import MODELS
from mmseg_mile.adapters.attention import replace_attention
from mmseg_mile.adapters.targets import (called_modules, is_adaptable,
                                         resolve_targets)

MIT = dict(
    type='MixVisionTransformer',
    embed_dims=8,
    num_layers=[1, 1, 1, 1],
    num_heads=[1, 2, 4, 8])
BEIT = dict(
    type='BEiT',
    img_size=64,
    embed_dims=16,
    num_layers=1,
    num_heads=2,
    out_indices=(0, ),
    init_values=0.1)
RESNET = dict(
    type='ResNetV1c',
    depth=18,
    stem_channels=8,
    base_channels=8,
    num_stages=2,
    strides=(1, 2),
    dilations=(1, 1),
    out_indices=(0, 1))


class SmallNet(nn.Module):
    """One layer of each kind, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())
        self.spare = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Leave out the spare layer."""
        return self.block(self.norm(self.depthwise(self.stem(x))))


def test_cnn_defaults_to_all_dense_convolutions():
    assert resolve_targets(SmallNet()) == ['stem', 'block.0']


def test_cnn_backbone_defaults_to_every_convolution_it_calls():
    backbone = MODELS.build(RESNET)
    wanted = [
        n for n, m in backbone.named_modules() if isinstance(m, nn.Conv2d)
    ]
    assert len(wanted) > 10
    assert resolve_targets(backbone) == wanted


def test_transformer_defaults_to_attention_and_ffn():
    backbone = MODELS.build(MIT)
    replace_attention(backbone)
    targets = resolve_targets(backbone)
    assert all(
        isinstance(m, nn.Linear) or m.kernel_size == (1, 1)
        for m in map(backbone.get_submodule, targets))
    first = [t for t in targets if t.startswith('layers.0.1.0.')]
    assert first == [
        'layers.0.1.0.attn.attn.q_proj', 'layers.0.1.0.attn.attn.k_proj',
        'layers.0.1.0.attn.attn.v_proj', 'layers.0.1.0.attn.attn.out_proj',
        'layers.0.1.0.ffn.layers.0', 'layers.0.1.0.ffn.layers.4'
    ]


def test_default_leaves_out_layers_that_are_never_called():
    assert 'layers.0.attn.qkv' not in resolve_targets(MODELS.build(BEIT))


def test_backbone_without_a_fitting_layer_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 3, 3, groups=3))
    with pytest.raises(ValueError, match='nothing LoRA could adapt'):
        resolve_targets(net)


@pytest.mark.parametrize('target_modules, wanted', [
    (['stem'], ['stem']),
    (['0', 'stem'], ['stem', 'block.0']),
    (['block.0'], ['block.0']),
    (r'(stem|block\.\d)', None),
    (r'st.*m', ['stem']),
])  # yapf: disable
def test_targets_have_the_meaning_that_peft_gives_them(target_modules, wanted):
    assert resolve_targets(SmallNet(), target_modules) == (
        wanted or ['stem', 'block.0'])


def test_last_part_of_a_name_is_matched_as_a_whole():
    with pytest.raises(ValueError, match='matches no layer'):
        resolve_targets(SmallNet(), ['em'])


def test_unmatched_target_suggests_near_names():
    with pytest.raises(ValueError, match="'stam' matches no layer.*'stem'"):
        resolve_targets(SmallNet(), ['stem', 'stam'])


def test_unmatched_target_with_no_near_name_lists_some_layers():
    with pytest.raises(ValueError, match=r"did you mean one of \['0', 'bl"):
        resolve_targets(SmallNet(), ['xyzzy'])


def test_empty_list_of_targets_is_refused():
    with pytest.raises(ValueError, match='target_modules is empty'):
        resolve_targets(SmallNet(), [])


@pytest.mark.parametrize('target, kind', [('depthwise', 'Conv2d'),
                                          ('norm', 'BatchNorm2d')])
def test_layer_that_takes_no_adapter_is_refused(target, kind):
    with pytest.raises(ValueError, match=f"'{target}', a {kind}"):
        resolve_targets(SmallNet(), [target])


def test_layer_that_is_never_called_is_refused():
    with pytest.raises(ValueError, match=r"never called.*\['spare'\]"):
        resolve_targets(SmallNet(), ['stem', 'spare'])


def test_qkv_of_beit_is_refused_as_its_forward_never_runs():
    with pytest.raises(ValueError, match="'qkv' matches layers whose"):
        resolve_targets(MODELS.build(BEIT), ['qkv'])


def test_out_proj_of_a_stock_attention_is_refused():
    with pytest.raises(ValueError, match="'out_proj' matches layers whose"):
        resolve_targets(MODELS.build(MIT), ['out_proj'])


def test_standardised_convolution_takes_no_adapter():
    # its output is not linear in its weight: merged would differ from trained
    assert not is_adaptable(ConvWS2d(3, 8, 3))


def test_probe_leaves_mode_and_hooks_as_they_were():
    net = SmallNet()
    net.norm.eval()
    assert 'spare' not in called_modules(net)
    assert net.training and net.block.training and not net.norm.training
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_probe_cleans_up_when_the_backbone_raises():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(4, 8, 3))
    with pytest.raises(RuntimeError):
        called_modules(net)
    assert net.training
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_probe_moves_no_statistics():
    net = SmallNet()
    before = net.norm.running_mean.clone()
    called_modules(net)
    assert torch.equal(net.norm.running_mean, before)


@pytest.mark.parametrize('channels', [1, 4])
def test_probe_has_the_channels_of_the_first_convolution(channels):
    net = nn.Sequential(nn.Conv2d(channels, 8, 3))
    assert resolve_targets(net) == ['0']
