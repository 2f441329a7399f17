# SPDX-License-Identifier: Apache-2.0
"""Layers that treat each part of a batch in its own way."""
from __future__ import annotations

import copy

import pytest
import torch
from mmcv.cnn.bricks import Conv2dAdaptivePadding
from torch import Tensor, nn
from torch.nn import functional as F

from mmseg_mile.adapters.adapter import lora_delta
from mmseg_mile.adapters.low_rank_pass import (LowRankConv2d, LowRankLinear,
                                               LowRankTerm, Part, PartedNorm)

CONVS = dict(
    strided=dict(kernel_size=3, stride=2, padding=1),
    dilated=dict(kernel_size=3, padding=2, dilation=2, bias=False),
    reflecting=dict(kernel_size=3, padding=1, padding_mode='reflect'),
    pointwise=dict(kernel_size=1))


def term(layer: nn.Module, scale: float = 0.5) -> LowRankTerm:
    """Random factors of rank 2 that fit a layer."""
    outputs, inputs, *kernel = layer.weight.shape
    return LowRankTerm(
        torch.randn(2, inputs, *kernel),
        torch.randn(outputs, 2, *[1] * len(kernel)), scale)


def parts(*terms: LowRankTerm | None) -> list[Part]:
    """One part of two images, then one of a single image each."""
    return [
        Part(1 + i if i else 0, 2 + i, {'layer': t} if t else {}, {})
        for i, t in enumerate(terms)
    ]


def merged(layer: nn.Module, own: LowRankTerm | None) -> nn.Module:
    """A copy of a layer with ``W + s B A``."""
    other = copy.deepcopy(layer)
    if own is not None:
        other.weight.data += own.scale * lora_delta(own.down, own.up)
    return other


def assert_parted(layer: nn.Module,
                  low_rank: nn.Module,
                  x: Tensor,
                  terms: list,
                  per_image: int = 1) -> None:
    """Compare with each part alone through merged weights."""
    low_rank.parts = parts(*terms)
    seen = x.clone()
    got = low_rank(x)
    assert torch.equal(x, seen)
    for own, part in zip(terms, low_rank.parts):
        rows = slice(part.start * per_image, part.stop * per_image)
        torch.testing.assert_close(
            got[rows], merged(layer, own)(x[rows]), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize('shape', [(4, 6), (4, 3, 6), (4, 2, 3, 6)])
def test_linear_layer_adds_each_parts_own_term(shape):
    layer = nn.Linear(6, 5)
    assert_parted(layer, LowRankLinear('layer', layer), torch.randn(shape),
                  [term(layer), None, term(layer, -2.0)])


@torch.no_grad()
def test_windows_of_an_image_lie_side_by_side():
    layer = nn.Linear(6, 5)
    assert_parted(
        layer,
        LowRankLinear('layer', layer),
        torch.randn(4 * 3, 7, 6), [term(layer), term(layer), None],
        per_image=3)


@torch.no_grad()
def test_linear_layer_takes_a_transposed_input():
    layer = nn.Linear(6, 5)
    assert_parted(layer, LowRankLinear('layer', layer),
                  torch.randn(6, 3, 4).permute(2, 1, 0),
                  [term(layer), term(layer), None])


@torch.no_grad()
@pytest.mark.parametrize('kind', CONVS)
@pytest.mark.parametrize('layout',
                         [torch.contiguous_format, torch.channels_last])
def test_convolution_adds_each_parts_own_term(kind, layout):
    layer = nn.Conv2d(3, 4, **CONVS[kind])
    x = torch.randn(4, 3, 9, 7).to(memory_format=layout)
    assert_parted(layer, LowRankConv2d('layer', layer), x,
                  [term(layer), None, term(layer, -2.0)])


@torch.no_grad()
def test_convolution_that_pads_in_its_own_forward_pads_the_term_too():
    layer = Conv2dAdaptivePadding(3, 4, 3, stride=2)
    assert_parted(layer, LowRankConv2d('layer',
                                       layer), torch.randn(4, 3, 9, 7),
                  [term(layer), None, term(layer)])


@torch.no_grad()
def test_convolution_has_its_own_weight_and_bias_back():
    layer = nn.Conv2d(3, 4, 3)
    own = layer.weight, layer.bias
    low_rank = LowRankConv2d('layer', layer)
    low_rank.parts = parts(term(layer))
    low_rank(torch.randn(2, 3, 9, 9))
    assert (layer.weight, layer.bias) == own
    wrong = LowRankTerm(torch.randn(2, 7, 3, 3), torch.randn(4, 2, 1, 1), 1.0)
    low_rank.parts = parts(wrong)
    with pytest.raises(RuntimeError):
        low_rank(torch.randn(2, 3, 9, 9))
    assert layer.weight is own[0] and layer.bias is own[1]


@torch.no_grad()
@pytest.mark.parametrize('kind', ['linear', 'conv', 'norm'])
def test_autocast_lowers_the_result_as_it_does_the_base_s(kind):
    layer = dict(
        linear=nn.Linear(6, 5), conv=nn.Conv2d(6, 5, 1),
        norm=nn.BatchNorm1d(6).eval())[kind]  # yapf: disable
    x = torch.randn((3, 6, 4, 4) if kind == 'conv' else (3, 6))
    if kind == 'norm':
        low_rank, x = PartedNorm('layer', layer), x.bfloat16()
        low_rank.parts = [Part(0, 3, {}, {'layer': {'bias': torch.ones(6)}})]
        wanted = layer(x) + 1
    else:
        low_rank = (LowRankLinear if kind == 'linear' else LowRankConv2d)(
            'layer', layer)
        own = term(layer)
        low_rank.parts = [Part(0, 3, {'layer': own}, {})]
        wanted = merged(layer, own)(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        got = low_rank(x)
        assert got.dtype == layer(x).dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), wanted.float(), rtol=.05, atol=.1)


NORMS = dict(
    batch=lambda: nn.BatchNorm2d(6),
    batch_without_affine=lambda: nn.BatchNorm2d(6, affine=False),
    batch_without_statistics=lambda: nn.BatchNorm2d(
        6, track_running_stats=False),
    group=lambda: nn.GroupNorm(2, 6),
    layer=lambda: nn.LayerNorm(6))


def moved(norm: nn.Module) -> nn.Module:
    """A copy of a norm layer with values of its own."""
    other = copy.deepcopy(norm)
    for value in other.state_dict().values():
        if value.is_floating_point():
            value.copy_(0.5 + torch.rand_like(value))
    return other


@torch.no_grad()
@pytest.mark.parametrize('kind', NORMS)
def test_norm_layer_uses_each_parts_own_tensors(kind):
    norm = moved(NORMS[kind]().eval())
    one, two = moved(norm), moved(norm)
    parted = PartedNorm('layer', norm)
    parted.parts = [
        Part(0, 1, {}, {'layer': dict(one.state_dict())}),
        Part(1, 3, {}, {}),
        Part(3, 4, {}, {'layer': dict(two.state_dict())})
    ]
    # two windows per image; statistics of the batch would mix the parts
    x = torch.randn(8, 6, 4, 6)
    got = parted(x)
    for rows, own in ((slice(0, 2), one), (slice(2,
                                                 6), norm), (slice(6,
                                                                   8), two)):
        torch.testing.assert_close(
            got[rows], own(x[rows]), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_expert_that_owns_some_tensors_has_the_others_of_the_base():
    norm = moved(nn.BatchNorm2d(6).eval())
    parted, x = PartedNorm('layer', norm), torch.randn(2, 6, 4, 4)
    mean = torch.rand(6)
    parted.parts = [Part(0, 2, {}, {'layer': {'running_mean': mean}})]
    wanted = F.batch_norm(x, mean, norm.running_var, norm.weight, norm.bias)
    torch.testing.assert_close(parted(x), wanted)


@torch.no_grad()
def test_norm_layer_that_no_expert_owns_runs_once():
    norm, calls = nn.LayerNorm(6), []
    norm.register_forward_hook(lambda *_: calls.append(1))
    parted, x = PartedNorm('layer', norm), torch.randn(3, 6)
    parted.parts = [Part(0, 1, {}, {}), Part(1, 3, {}, {'other': {}})]
    assert torch.equal(parted(x), norm(x))
    assert len(calls) == 2
