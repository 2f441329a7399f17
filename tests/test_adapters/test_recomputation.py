# SPDX-License-Identifier: Apache-2.0
"""An adapted layer keeps what GELU keeps, and its gradients stay the same."""
from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmseg.models.backbones.mit import MixFFN
from mmseg_mile.adapters.fast_layers import (RecomputedGELU, can_recompute,
                                             origin_of)
from mmseg_mile.adapters.injection import LoRAInjection

LORA = dict(r=2, lora_alpha=4, lora_dropout=0.0, use_rslora=False)
WIDTH = 6  # of the hidden map
# How to make the adapted layer, and the shape of an input.
LAYERS = {
    'linear': (lambda: nn.Linear(WIDTH, 4), (2, 5, WIDTH)),
    'pointwise': (lambda: nn.Conv2d(WIDTH, 4, 1), (2, WIDTH, 4, 5)),
    'spatial': (lambda: nn.Conv2d(WIDTH, 4, 3, padding=1), (2, WIDTH, 4, 5)),
}


def chain(kind: str,
          *between: nn.Module,
          approximate: str = 'none') -> tuple[nn.Sequential, Tensor]:
    """GELU in front of an adapted layer, in training, and an input."""
    make, shape = LAYERS[kind]
    net = nn.Sequential(nn.GELU(approximate), *between, make())
    net.double().requires_grad_(False)
    last = str(len(net) - 1)
    LoRAInjection(net, [last], LORA, train_norm=False)
    nn.init.normal_(net[-1].lora_B)
    return net.train(), torch.randn(shape, requires_grad=True).double()


def unfused(net: nn.Sequential) -> nn.Sequential:
    """The same layers behind an activation that does not tell."""
    return nn.Sequential(net[0].activation, *net[1:])


def gradients(forward: Callable[[Tensor], Tensor], layer: nn.Module,
              x: Tensor) -> list[Tensor]:
    """Output, and gradients by input, A and B."""
    x = x.detach().requires_grad_()
    layer.zero_grad()
    y = forward(x)
    weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
    (y * weights).sum().backward()
    return [y, x.grad, layer.lora_A.grad.clone(), layer.lora_B.grad.clone()]


def kept(forward: Callable[[Tensor], Tensor], x: Tensor) -> set[int]:
    """Memory of the maps of the size of ``x`` that wait for backward."""
    tensors: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
            lambda t: tensors.append(t) or t, lambda t: t):
        forward(x)
    return {
        t.untyped_storage().data_ptr()
        for t in tensors if t.numel() == x.numel()
    }


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('approximate', ['none', 'tanh'])
@pytest.mark.parametrize('kind', LAYERS)
def test_gradients_are_those_of_the_kept_map(kind, approximate, channels_last):
    net, x = chain(kind, approximate=approximate)
    if channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        gradients(net, net[-1], x), gradients(unfused(net), net[-1], x))


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('kind', LAYERS)
def test_one_map_is_kept_instead_of_two(kind, channels_last):
    net, x = chain(kind)
    if channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    assert kept(net, x) == {x.untyped_storage().data_ptr()}
    assert len(kept(unfused(net), x)) == 2


@pytest.mark.parametrize('kind', LAYERS)
def test_gradients_are_those_of_finite_differences(kind):
    net, x = chain(kind)
    layer = net[-1]

    def forward(x: Tensor, *unused: Tensor) -> Tensor:
        return net(x)

    assert torch.autograd.gradcheck(forward, (x, layer.lora_A, layer.lora_B))


@pytest.mark.parametrize('kind', LAYERS)
def test_dropout_that_drops_nothing_may_stand_between(kind):
    net, x = chain(kind, nn.Dropout(0.0), nn.Identity())
    assert len(kept(net, x)) == 1


def test_what_a_dropout_left_is_kept():
    net, x = chain('linear', nn.Dropout(0.5))
    torch.manual_seed(3)
    wanted = gradients(unfused(net), net[-1], x)
    torch.manual_seed(3)
    torch.testing.assert_close(gradients(net, net[-1], x), wanted)


def test_map_that_was_written_to_is_kept():
    net, x = chain('linear')
    layer = net[-1]
    # of the same function both times, once with the map known and once not
    torch.testing.assert_close(
        gradients(lambda x: layer(net[0](x).mul_(2)), layer, x),
        gradients(lambda x: layer(2 * net[0](x)), layer, x))


def test_another_user_of_the_map_notices_nothing():
    net, x = chain('linear')

    def twice(net: nn.Sequential) -> Callable[[Tensor], Tensor]:

        def forward(x: Tensor) -> Tensor:
            hidden = net[0](x)
            return (net[1](hidden) * hidden[..., :4]).sin()

        return forward

    torch.testing.assert_close(
        gradients(twice(net), net[-1], x),
        gradients(twice(unfused(net)), net[-1], x))


@pytest.mark.parametrize('use_reentrant', [False, True])
@pytest.mark.parametrize('kind', LAYERS)
def test_gradients_under_checkpointing_are_the_same(kind, use_reentrant):
    net, x = chain(kind)
    torch.testing.assert_close(
        gradients(lambda x: checkpoint(net, x, use_reentrant=use_reentrant),
                  net[-1], x), gradients(unfused(net), net[-1], x))


@pytest.mark.parametrize('input_dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('kind', LAYERS)
def test_gradients_under_autocast_are_the_same(kind, input_dtype):
    net, x = chain(kind)
    net.float()
    x = x.to(input_dtype)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        got = gradients(net, net[-1], x)
        wanted = gradients(unfused(net), net[-1], x)
    torch.testing.assert_close(got, wanted)


def test_map_that_needs_no_gradient_is_not_recomputed():
    net, x = chain('linear')
    assert origin_of(net[0](x.detach())) is None


def test_nothing_is_kept_without_gradients():
    net, x = chain('linear')
    with torch.no_grad():
        assert origin_of(net[0](x)) is None
        assert torch.equal(net(x), unfused(net)(x))


def test_layout_that_copies_is_not_worth_it():
    x = torch.randn(2, 3, 4, requires_grad=True)
    found = origin_of(RecomputedGELU(nn.GELU())(x))
    assert found.rearranged(lambda x: x.flatten(1)) is not None
    assert found.rearranged(lambda x: x.mT.flatten(1)) is None


@pytest.mark.parametrize('activation, expected', [
    (nn.GELU(), True),
    (nn.GELU('tanh'), True),
    (nn.ReLU(), False),
    (nn.Dropout(), False),
])
def test_activations_that_keep_their_input(activation, expected):
    assert can_recompute(activation) is expected


def test_ffn_of_mit_keeps_one_map_of_its_hidden_width():
    ffn = MixFFN(4, 16).requires_grad_(False).train()
    stock = copy.deepcopy(ffn)
    LoRAInjection(ffn, ['layers.0', 'layers.4'], LORA, train_norm=False)
    x = torch.randn(1, 4 * 16, 4, requires_grad=True)  # (B, L, C)
    hidden: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
            lambda t: hidden.append(t.data_ptr()) or t
            if t.numel() == 4 * x.numel() else t, lambda t: t):
        y = ffn(x, (8, 8))
    assert len(set(hidden)) == 1
    torch.testing.assert_close(y, stock(x, (8, 8)))
