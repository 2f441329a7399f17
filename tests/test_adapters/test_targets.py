# SPDX-License-Identifier: Apache-2.0
"""The ``lora`` field: which layers get an adapter, and which are refused."""
from __future__ import annotations

import pytest
import torch
from mmcv.cnn import ConvWS2d
from torch import Tensor, nn

from mmseg.registry import MODELS
from mmseg_mile.adapters.attention import replace_attention
from mmseg_mile.adapters.targets import (called_modules, check_lora_config,
                                         is_adaptable, lora_scaling,
                                         probe_images, resolve_targets)

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


# -- settings ----------------------------------------------------------------


def test_arguments_for_peft_come_without_the_targets():
    checked = check_lora_config(
        dict(r=4, lora_alpha=8, target_modules=['qkv']))
    assert checked == dict(
        r=4, lora_alpha=8, lora_dropout=0.0, use_rslora=False)


@pytest.mark.parametrize('change, message', [
    (dict(rank=4), r"unknown keys \['rank'\]; allowed: .*'r'"),
    (dict(r=0), r'lora.r \(the rank\) must be an integer >= 1, got 0'),
    (dict(r=None), 'lora.r .* got None'),
    (dict(r=2.5), 'lora.r .* got 2.5'),
    (dict(r=True), 'lora.r .* got True'),
    (dict(lora_alpha=0), 'lora.lora_alpha must be > 0, got 0'),
    (dict(lora_alpha=None), 'lora.lora_alpha must be > 0, got None'),
    (dict(lora_alpha='8'), "lora.lora_alpha must be > 0, got '8'"),
    (dict(lora_dropout=1.0), r'lora.lora_dropout must be in \[0, 1\)'),
    (dict(lora_dropout=-0.1), 'lora.lora_dropout .* got -0.1'),
    (dict(lora_dropout=None), 'lora.lora_dropout .* got None'),
])  # yapf: disable
def test_wrong_setting_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        check_lora_config({'r': 4, 'lora_alpha': 8, **change})


@pytest.mark.parametrize('config, scaling', [
    (dict(r=4, lora_alpha=8), 2),
    (dict(r=4, lora_alpha=8, use_rslora=True), 4),
    (check_lora_config(None), 1),
])  # yapf: disable
def test_scaling_is_alpha_over_rank_or_its_root(config, scaling):
    assert lora_scaling(config) == scaling


# -- layers ------------------------------------------------------------------


def test_cnn_defaults_to_all_dense_convolutions():
    assert resolve_targets(SmallNet()) == ['stem', 'block.0']


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


@pytest.mark.parametrize('target_modules, wanted', [
    (['stem'], ['stem']),
    (['0', 'stem'], ['stem', 'block.0']),
    (['block.0'], ['block.0']),
    (r'(stem|block\.\d)', ['stem', 'block.0']),
    (r'st.*m', ['stem']),
])  # yapf: disable
def test_targets_have_the_meaning_that_peft_gives_them(target_modules, wanted):
    assert resolve_targets(SmallNet(), target_modules) == wanted


@pytest.mark.parametrize('make, target, message', [
    (SmallNet, ['em'], "'em' matches no layer"),
    (SmallNet, ['stem', 'stam'], "'stam' matches no layer.*'stem'"),
    (SmallNet, ['xyzzy'], r"did you mean one of \['0', 'bl"),
    (SmallNet, [], 'target_modules is empty'),
    (SmallNet, ['depthwise'], "'depthwise', a Conv2d"),
    (SmallNet, ['norm'], "'norm', a BatchNorm2d"),
    (SmallNet, ['stem', 'spare'], r"never called.*\['spare'\]"),
    (lambda: MODELS.build(BEIT), ['qkv'], "'qkv' matches layers whose"),
    # torch's attention never calls it
    (lambda: MODELS.build(MIT), ['out_proj'], "'out_proj' matches layers"),
    (lambda: nn.Sequential(nn.Conv2d(3, 3, 3, groups=3)), None,
     'nothing LoRA could adapt'),
])  # yapf: disable
def test_target_that_trains_nothing_is_refused(make, target, message):
    with pytest.raises(ValueError, match=message):
        resolve_targets(make(), target)


def test_standardised_convolution_takes_no_adapter():
    # its output is not linear in its weight: merged would differ from trained
    assert not is_adaptable(ConvWS2d(3, 8, 3))


# -- the probe ---------------------------------------------------------------


def test_probe_leaves_everything_as_it_was():
    net = SmallNet()
    net.norm.eval()
    mean, state = net.norm.running_mean.clone(), torch.get_rng_state()
    assert 'spare' not in called_modules(net)
    assert net.training and net.block.training and not net.norm.training
    assert not any(m._forward_hooks for m in net.modules())
    assert torch.equal(net.norm.running_mean, mean)
    assert torch.equal(torch.get_rng_state(), state)


def test_probe_cleans_up_when_the_backbone_raises():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(4, 8, 3))
    with pytest.raises(RuntimeError):
        called_modules(net)
    assert net.training
    assert not any(m._forward_hooks for m in net.modules())


@pytest.mark.parametrize('fields, size', [
    (dict(), (48, 48)),
    (dict(img_size=32), (32, 32)),
    (dict(img_size=(32, 64)), (32, 64)),
])  # yapf: disable
def test_probe_is_an_image_that_the_backbone_accepts(fields, size):
    net = nn.Sequential(nn.Conv2d(5, 2, 1)).double()
    vars(net).update(fields)
    images = probe_images(net, 2, side=48)
    assert images.shape == (2, 5, *size) and images.dtype == torch.double
    assert not torch.allclose(*images)
    assert torch.equal(images, probe_images(net, 2, side=48))


def test_network_without_a_convolution_sees_three_channels():
    assert probe_images(nn.Linear(4, 4), 1).shape == (1, 3, 128, 128)
