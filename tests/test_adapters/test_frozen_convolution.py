# SPDX-License-Identifier: Apache-2.0
"""A frozen convolution is torch's, less what it keeps."""
from __future__ import annotations

import pytest
import torch
from mmcv.cnn.bricks import Conv2dAdaptivePadding
from torch import nn

from mmseg_mile.adapters.fast_layers import FrozenConv2d, is_plain_convolution

CONVOLUTIONS = {
    'depthwise': lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4),
    'strided': lambda: nn.Conv2d(4, 6, 3, stride=2, bias=False),
    'dilated': lambda: nn.Conv2d(4, 6, 3, padding=(2, 1), dilation=2),
    'patches': lambda: nn.Conv2d(4, 6, (3, 2), stride=(3, 2)),
}


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('kind', CONVOLUTIONS)
def test_output_and_gradient_are_torch_s(kind, channels_last):
    conv = CONVOLUTIONS[kind]().double().requires_grad_(False)
    x = torch.randn(2, 4, 8, 9).double()
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    wanted = conv(x)
    got = FrozenConv2d(conv)(x)
    assert torch.equal(got, wanted)
    g = torch.randn_like(got)
    torch.testing.assert_close(
        torch.autograd.grad(got, x, g), torch.autograd.grad(wanted, x, g))


def test_input_is_not_kept():
    conv = FrozenConv2d(nn.Conv2d(4, 4, 3).requires_grad_(False))
    x, kept = torch.randn(1, 4, 5, 5, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.append(t) or t, lambda t: t):
        conv(x)
    assert [t.data_ptr() for t in kept] == [conv.weight.data_ptr()]


def test_parameters_and_their_names_are_shared():
    conv = nn.Conv2d(4, 4, 3)
    frozen = FrozenConv2d(conv)
    assert dict(frozen.named_parameters()) == dict(conv.named_parameters())


def test_autocast_lowers_it():
    conv = FrozenConv2d(nn.Conv2d(4, 4, 3).requires_grad_(False))
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = conv(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize('module, expected', [
    (nn.Conv2d(4, 4, 3), True),
    (nn.Conv2d(4, 4, 3, padding='same'), False),
    (nn.Conv2d(4, 4, 3, padding=1, padding_mode='reflect'), False),
    (Conv2dAdaptivePadding(4, 4, 3), False),
    (nn.Linear(4, 4), False),
])  # yapf: disable
def test_what_can_be_frozen(module, expected):
    assert is_plain_convolution(module) == expected
