# SPDX-License-Identifier: Apache-2.0
"""Our layers against the layers of PEFT that they replace."""
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from mmcv.cnn.bricks import Conv2dAdaptivePadding
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# yapf: disable
from mmseg_mile.adapters.fast_layers import (LoRAConv2d, LoRALayer, LoRALinear,
                                             LoRAPointwiseConv2d, lora_layer)

# yapf: enable

# How to make the layer, an input, and what takes its place. PEFT's own layer
# is right for all of these.
LAYERS = {
    'linear': (lambda: nn.Linear(6, 10), (2, 5, 6), LoRALinear),
    'linear_no_bias':
    (lambda: nn.Linear(6, 10, bias=False), (4, 6), LoRALinear),
    'pointwise':
    (lambda: nn.Conv2d(6, 10, 1), (2, 6, 4, 5), LoRAPointwiseConv2d),
    'strided_pointwise': (lambda: nn.Conv2d(6, 10, 1, stride=2, bias=False),
                          (2, 6, 5, 4), LoRAPointwiseConv2d),
    'spatial':
    (lambda: nn.Conv2d(6, 10, 3, padding=1), (2, 6, 5, 4), LoRAConv2d),
    'strided':
    (lambda: nn.Conv2d(6, 10, 3, stride=2), (2, 6, 8, 7), LoRAConv2d),
    'padding_by_name': (lambda: nn.Conv2d(6, 10, 3, padding='same'),
                        (2, 6, 5, 4), LoRALayer),
    'adaptive_padding': (lambda: Conv2dAdaptivePadding(6, 10, 3, stride=2),
                         (2, 6, 5, 4), LoRALayer),
}


def pair(make: Callable[[], nn.Module],
         **config: object) -> tuple[nn.Module, LoRALayer]:
    """PEFT's layer and ours with the same parameters, away from zero."""
    net = nn.Sequential(make()).double().requires_grad_(False)
    inject_adapter_in_model(
        LoraConfig(r=2, lora_alpha=3, target_modules=['0'], **config), net)
    theirs = net[0].train()
    nn.init.normal_(theirs.lora_B['default'].weight)
    return theirs, lora_layer(theirs, 'default').train()


def gradients(layer: nn.Module, ours: LoRALayer,
              x: Tensor) -> list[Tensor]:
    """Output, and gradients by input, A and B."""
    y = layer(x)
    weights = torch.linspace(-1, 1, y.numel()).view(y.shape).double()
    wanted = (x, ours.lora_A, ours.lora_B)
    return [y, *torch.autograd.grad((y * weights).sum(), wanted)]


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('kind', LAYERS)
def test_output_and_gradients_are_those_of_peft(kind, channels_last):
    make, shape, _ = LAYERS[kind]
    theirs, ours = pair(make)
    x = torch.randn(shape).double()
    if channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    torch.testing.assert_close(
        gradients(ours, ours, x), gradients(theirs, ours, x))


@pytest.mark.parametrize('kind', LAYERS)
def test_kind_of_layer(kind):
    make, _, expected = LAYERS[kind]
    assert type(pair(make)[1]) is expected


@pytest.mark.parametrize('kind', LAYERS)
def test_dropout_is_on_the_way_down_only(kind):
    make, shape, _ = LAYERS[kind]
    theirs, ours = pair(make, lora_dropout=0.5)
    x = torch.randn(shape).double().requires_grad_()
    torch.manual_seed(3)
    wanted = gradients(theirs, ours, x)
    torch.manual_seed(3)
    torch.testing.assert_close(gradients(ours, ours, x), wanted)


def test_nothing_is_dropped_in_eval_mode():
    _, ours = pair(lambda: nn.Linear(6, 10), lora_dropout=0.5)
    x = torch.randn(3, 6).double()
    assert torch.equal(ours.eval()(x), ours(x))


def test_parameters_are_the_very_ones_of_peft():
    theirs, ours = pair(lambda: nn.Linear(6, 10))
    assert ours.lora_A is theirs.lora_A['default'].weight
    assert {n for n, p in ours.named_parameters() if p.requires_grad} == {
        'lora_A', 'lora_B'
    }  # yapf: disable


@pytest.mark.parametrize('kind', ['linear', 'pointwise', 'spatial'])
def test_base_layer_gets_no_gradient(kind):
    make, shape, _ = LAYERS[kind]
    _, ours = pair(make)
    ours(torch.randn(shape).double()).sum().backward()
    assert all(p.grad is None for p in ours.base_layer.parameters())


@pytest.mark.parametrize('kind', ['linear', 'pointwise', 'spatial'])
def test_autocast_computes_in_bfloat16(kind):
    make, shape, _ = LAYERS[kind]
    _, ours = pair(make)
    ours.float()
    x = torch.randn(shape, requires_grad=True)
    exact = ours(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = ours(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.1)


@pytest.mark.parametrize('kind', ['linear', 'pointwise', 'spatial'])
def test_gradients_under_autocast_are_float32(kind):
    make, shape, _ = LAYERS[kind]
    _, ours = pair(make)
    ours.float()
    x = torch.randn(shape, requires_grad=True)
    # backward inside the context is discouraged, and must still be right
    with torch.autocast('cpu', dtype=torch.bfloat16):
        ours(x).float().sum().backward()
    assert ours.lora_A.grad.dtype == ours.lora_B.grad.dtype == torch.float32
    low, ours.lora_A.grad = ours.lora_A.grad, None
    ours(x).sum().backward()
    torch.testing.assert_close(low, ours.lora_A.grad, rtol=0.1, atol=0.3)


@pytest.mark.parametrize('use_reentrant', [False, True])
@pytest.mark.parametrize('kind', LAYERS)
def test_recomputed_gradients_are_the_same(kind, use_reentrant):
    make, shape, _ = LAYERS[kind]
    _, ours = pair(make)
    x = torch.randn(shape).double().requires_grad_()
    wanted = gradients(ours, ours, x)
    y = checkpoint(ours, x, use_reentrant=use_reentrant)
    weights = torch.linspace(-1, 1, y.numel()).view(y.shape).double()
    ours.zero_grad()
    (y * weights).sum().backward()
    got = [y, x.grad, ours.lora_A.grad, ours.lora_B.grad]
    torch.testing.assert_close(got, wanted)
