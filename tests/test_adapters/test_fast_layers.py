# SPDX-License-Identifier: Apache-2.0
"""Our trainable layers against those of PEFT, and what they keep."""
from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from mmcv.cnn.bricks import Conv2dAdaptivePadding
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmseg.models.backbones.mit import MixFFN
from mmseg_mile.adapters import fast_layers
from mmseg_mile.adapters.fast_layers import (FrozenConv2d, LoRAConv2d,
                                             LoRALayer, LoRALinear,
                                             LoRAPointwiseConv2d, Plan,
                                             RecomputedGELU, choose_plan,
                                             is_plain_convolution, lora_layer)
from mmseg_mile.adapters.injection import LoRAInjection

LORA = dict(r=2, lora_alpha=4, lora_dropout=0.0, use_rslora=False)
# How to make the layer, an input, and what takes its place. PEFT's own layer
# is right for all of these.
LAYERS = {
    'linear': (lambda: nn.Linear(6, 10), (2, 7, 6), LoRALinear),
    'linear_no_bias':
    (lambda: nn.Linear(6, 10, bias=False), (4, 6), LoRALinear),
    'pointwise':
    (lambda: nn.Conv2d(6, 10, 1), (2, 6, 4, 5), LoRAPointwiseConv2d),
    'strided_pointwise': (lambda: nn.Conv2d(6, 10, 1, stride=2, bias=False),
                          (2, 6, 5, 4), LoRAPointwiseConv2d),
    'spatial':
    (lambda: nn.Conv2d(6, 10, 3, padding=1), (2, 6, 5, 4), LoRAConv2d),
    # two rows and a column at the end that no kernel reaches
    'strided': (lambda: nn.Conv2d(6, 10, (2, 1), stride=3),
                (2, 6, 7, 6), LoRAConv2d),
    'padding_by_name': (lambda: nn.Conv2d(6, 10, 3, padding='same'),
                        (2, 6, 5, 4), LoRALayer),
    'adaptive_padding': (lambda: Conv2dAdaptivePadding(6, 10, 3, stride=2),
                         (2, 6, 5, 4), LoRALayer),
}  # yapf: disable
# with a product of their own in each layout
FAST = ('linear', 'pointwise', 'spatial')
by_layer = pytest.mark.parametrize('kind', LAYERS)
by_fast_layer = pytest.mark.parametrize('kind', FAST)
by_memory = pytest.mark.parametrize('channels_last', [False, True])
by_plan = pytest.mark.parametrize(
    'plan', [Plan(*way) for way in itertools.product([True, False], repeat=2)])


def pair(kind: str, **config: object) -> tuple[nn.Module, LoRALayer]:
    """PEFT's layer and ours with the same parameters, away from zero."""
    net = nn.Sequential(LAYERS[kind][0]()).double().requires_grad_(False)
    inject_adapter_in_model(
        LoraConfig(r=2, lora_alpha=3, target_modules=['0'], **config), net)
    theirs = net[0].train()
    nn.init.normal_(theirs.lora_B['default'].weight)
    return theirs, lora_layer(theirs, 'default').train()


def draw(kind: str, channels_last: bool = False) -> Tensor:
    """An input of the layer."""
    x = torch.randn(LAYERS[kind][1]).double()
    if channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    return x.requires_grad_()


def gradients(forward: Callable[[Tensor], Tensor], layer: LoRALayer,
              x: Tensor) -> list[Tensor]:
    """Output, and gradients by input, A and B."""
    x = x.detach().requires_grad_()
    layer.zero_grad()
    y = forward(x)
    weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
    (y * weights).sum().backward()
    return [y, x.grad, layer.lora_A.grad.clone(), layer.lora_B.grad.clone()]


def kept_maps(forward: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """What waits for backward."""
    tensors: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
            lambda t: tensors.append(t) or t, lambda t: t):
        forward(x)
    return tensors


# -- adapted layers ----------------------------------------------------------


@by_memory
@by_layer
def test_output_and_gradients_are_those_of_peft(kind, channels_last):
    theirs, ours = pair(kind)
    assert type(ours) is LAYERS[kind][2]
    assert ours.lora_A is theirs.lora_A['default'].weight
    x = draw(kind, channels_last)
    torch.testing.assert_close(
        gradients(ours, ours, x), gradients(theirs, ours, x))


@by_plan
@by_memory
@by_fast_layer
def test_every_plan_is_the_same_function(kind, channels_last, plan,
                                         monkeypatch):
    monkeypatch.setattr(fast_layers, 'choose_plan', lambda *_: plan)
    theirs, ours = pair(kind)
    x = draw(kind, channels_last)
    torch.testing.assert_close(
        gradients(ours, ours, x), gradients(theirs, ours, x))


@by_plan
def test_gradients_are_those_of_finite_differences(plan, monkeypatch):
    monkeypatch.setattr(fast_layers, 'choose_plan', lambda *_: plan)
    # PEFT forgets the dilation, so it cannot be asked
    net = nn.Sequential(
        nn.Conv2d(2, 3, (3, 2), (2, 1), padding=(1, 0), dilation=(1, 2)))
    net.double().requires_grad_(False)
    LoRAInjection(net, ['0'], LORA, train_norm=False)
    nn.init.normal_(net[0].lora_B)
    x = torch.randn(1, 2, 6, 5, requires_grad=True).double()
    assert torch.autograd.gradcheck(lambda x, *_: net(x),
                                    (x, net[0].lora_A, net[0].lora_B))


@by_layer
def test_dropout_is_on_the_way_down_only(kind):
    theirs, ours = pair(kind, lora_dropout=0.5)
    x = draw(kind)
    torch.manual_seed(3)
    wanted = gradients(theirs, ours, x)
    torch.manual_seed(3)
    torch.testing.assert_close(gradients(ours, ours, x), wanted)
    assert torch.equal(ours.eval()(x), ours(x))


@by_fast_layer
def test_nothing_but_the_adapter_and_the_input_gets_a_gradient(kind):
    _, ours = pair(kind)
    x = draw(kind).detach()
    ours(x).sum().backward()
    assert x.grad is None and ours.lora_A.grad.any()
    assert all(p.grad is None for p in ours.base_layer.parameters())


@by_plan
def test_nothing_but_the_input_is_kept_for_backward(plan, monkeypatch):
    monkeypatch.setattr(fast_layers, 'choose_plan', lambda *_: plan)
    _, ours = pair('linear')
    x = draw('linear')
    own = {t.data_ptr() for t in (x, *ours.parameters())}
    new = [t.shape for t in kept_maps(ours, x) if t.data_ptr() not in own]
    # without a merge also A x, of rank 2
    assert new == ([] if plan.merged else [(14, 2)])


@by_plan
@by_fast_layer
def test_autocast_computes_in_bfloat16_and_trains_in_float32(
        kind, plan, monkeypatch):
    monkeypatch.setattr(fast_layers, 'choose_plan', lambda *_: plan)
    _, ours = pair(kind)
    ours.float()
    x = draw(kind).detach().float()
    exact = gradients(ours, ours, x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y, *low = gradients(ours, ours, x)
    assert y.dtype == torch.bfloat16
    assert all(grad.dtype == torch.float32 for grad in low)
    for got, wanted in zip([y.float(), *low], exact):
        assert (got - wanted).norm() <= 0.03 * wanted.norm()


@pytest.mark.parametrize('side, positions, plan', [
    (32, 1000, Plan(merged=True, dense_gradient=True)),
    (160, 1000, Plan(merged=True, dense_gradient=False)),
    (64, 10, Plan(merged=False, dense_gradient=False)),
])
def test_small_weights_are_merged_and_narrow_ones_have_a_dense_gradient(
        side, positions, plan):
    assert choose_plan(torch.empty(side, side), 8, positions) == plan


# -- convolutions without an adapter -----------------------------------------

CONVOLUTIONS = {
    'depthwise': lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4),
    'strided': lambda: nn.Conv2d(4, 6, 3, stride=2, bias=False),
    'dilated': lambda: nn.Conv2d(4, 6, 3, padding=(2, 1), dilation=2),
    'patches': lambda: nn.Conv2d(4, 6, (3, 2), stride=(3, 2)),
}


@by_memory
@pytest.mark.parametrize('kind', CONVOLUTIONS)
def test_frozen_convolution_is_torch_s(kind, channels_last):
    conv = CONVOLUTIONS[kind]().double().requires_grad_(False)
    frozen = FrozenConv2d(conv)
    assert dict(frozen.named_parameters()) == dict(conv.named_parameters())
    x = torch.randn(2, 4, 8, 9).double()
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    wanted, got = conv(x), frozen(x)
    assert torch.equal(got, wanted)
    g = torch.randn_like(got)
    torch.testing.assert_close(
        torch.autograd.grad(got, x, g), torch.autograd.grad(wanted, x, g))


def test_frozen_convolution_keeps_no_input_and_obeys_autocast():
    conv = FrozenConv2d(nn.Conv2d(4, 4, 3).requires_grad_(False))
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    assert [t.data_ptr()
            for t in kept_maps(conv, x)] == [conv.weight.data_ptr()]
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


# -- GELU in front of an adapted layer ---------------------------------------


def chain(kind: str,
          *between: nn.Module,
          approximate: str = 'none') -> tuple[nn.Sequential, nn.Sequential]:
    """GELU and a layer in training, and the same with all maps kept."""
    _, layer = pair(kind)
    gelu = nn.GELU(approximate)
    return (nn.Sequential(RecomputedGELU(gelu), *between,
                          layer), nn.Sequential(gelu, *between, layer))


def num_maps(net: nn.Module, x: Tensor) -> int:
    """Memory of the size of ``x`` that waits for backward."""
    return len({
        t.untyped_storage().data_ptr()
        for t in kept_maps(net, x) if t.numel() == x.numel()
    })


@by_memory
@pytest.mark.parametrize('approximate', ['none', 'tanh'])
@by_fast_layer
def test_one_map_is_kept_instead_of_two(kind, approximate, channels_last):
    net, plain = chain(kind, approximate=approximate)
    x = draw(kind, channels_last)
    assert (num_maps(net, x), num_maps(plain, x)) == (1, 2)
    torch.testing.assert_close(
        gradients(net, net[-1], x), gradients(plain, net[-1], x))


def test_dropout_that_drops_nothing_may_stand_between():
    net, _ = chain('linear', nn.Dropout(0.0), nn.Identity())
    assert num_maps(net, draw('linear')) == 1


@pytest.mark.parametrize(
    'use', [
        lambda gelu, layer, x: layer(gelu(x).mul_(2)),
        lambda gelu, layer, x: layer(gelu(x) + x),
        lambda gelu, layer, x: layer(torch.dropout(gelu(x), 0.5, True)),
        lambda gelu, layer, x: (layer((y := gelu(x))) * y[..., :1]).sin(),
        lambda gelu, layer, x: layer(gelu(x).mT.contiguous().mT),
    ],
    ids=['written to', 'summed', 'dropped out', 'used twice', 'copied'])
def test_what_becomes_of_the_map_makes_no_difference(use):
    net, plain = chain('linear')
    layer, x = net[-1], draw('linear')
    found = []
    for gelu in (net[0], plain[0]):
        torch.manual_seed(3)
        found.append(gradients(lambda x, g=gelu: use(g, layer, x), layer, x))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize('use_reentrant', [False, True])
@by_fast_layer
def test_gradients_under_checkpointing_are_the_same(kind, use_reentrant):
    net, plain = chain(kind)
    x = draw(kind)
    torch.testing.assert_close(
        gradients(lambda x: checkpoint(net, x, use_reentrant=use_reentrant),
                  net[-1], x), gradients(plain, net[-1], x))


@pytest.mark.parametrize('input_dtype', [torch.float32, torch.bfloat16])
@by_fast_layer
def test_gradients_under_autocast_are_the_same(kind, input_dtype):
    net, plain = chain(kind)
    net.float()
    x = draw(kind).to(input_dtype)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        torch.testing.assert_close(
            gradients(net, net[-1], x), gradients(plain, net[-1], x))


def test_ffn_of_mit_keeps_one_map_of_its_hidden_width():
    ffn = MixFFN(4, 16).requires_grad_(False).train()
    stock = copy.deepcopy(ffn)
    LoRAInjection(ffn, ['layers.0', 'layers.4'], LORA, train_norm=False)
    x = torch.randn(1, 4 * 16, 4, requires_grad=True)  # (B, L, C)
    hidden = {
        t.data_ptr()
        for t in kept_maps(lambda x: ffn(x, (8, 8)), x)
        if t.numel() == 4 * x.numel()
    }
    assert len(hidden) == 1
    torch.testing.assert_close(ffn(x, (8, 8)), stock(x, (8, 8)))
