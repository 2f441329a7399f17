# SPDX-License-Identifier: Apache-2.0
"""Other tensors take the place of a network's own for a while."""
from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from mmseg_mile.adapters.adapter_library import TensorSlots


@pytest.fixture
def net() -> nn.Sequential:
    """A layer without a bias, a norm layer and a nested layer."""
    return nn.Sequential(
        nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4),
        nn.Sequential(nn.Linear(4, 4))).eval()


def state(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers as torch names them."""
    return dict([*net.named_parameters(), *net.named_buffers()])


def test_every_parameter_and_buffer_is_found_under_its_name(net):
    slots = TensorSlots(net)
    assert set(slots) == set(state(net)) and len(slots) == len(state(net))
    assert all(slots[name] is value for name, value in state(net).items())


def test_network_that_is_a_single_layer_has_slots_without_a_prefix():
    layer = nn.Linear(2, 2)
    assert TensorSlots(layer)['weight'] is layer.weight


def test_other_tensors_are_seen_inside_the_block_only(net):
    slots, x, own = TensorSlots(net), torch.randn(3, 4), dict(state(net))
    other = copy.deepcopy(net)
    for value in state(other).values():
        if value.is_floating_point():
            value.data.add_(torch.rand_like(value))
    before = net(x)
    with slots.holding(state(other)):
        assert torch.equal(net(x), other(x))
        assert not torch.equal(net(x), before)
    assert torch.equal(net(x), before)
    assert all(state(net)[name] is value for name, value in own.items())


def test_parameters_stay_parameters_when_the_block_raises(net):
    slots, own = TensorSlots(net), net[0].weight
    other = {'0.weight': torch.zeros(4, 4)}
    with pytest.raises(KeyError), slots.holding(other):
        raise KeyError
    assert net[0].weight is own
    assert '0.weight' in dict(net.named_parameters())


def test_blocks_nest(net):
    slots = TensorSlots(net)
    one, two = torch.full((4, 4), 1.0), torch.full((4, 4), 2.0)
    with slots.holding({'0.weight': one}):
        with slots.holding({'0.weight': two}):
            assert net[0].weight is two
        assert net[0].weight is one


def test_unknown_name_exchanges_nothing(net):
    slots, own = TensorSlots(net), net[0].weight
    with pytest.raises(KeyError, match='no.such'):
        with slots.holding({'0.weight': torch.zeros(4, 4), 'no.such': own}):
            raise AssertionError
    assert net[0].weight is own


def test_tensors_may_move_or_be_replaced(net):
    slots = TensorSlots(net)
    net.double()
    net[0].weight = nn.Parameter(torch.zeros(4, 4))
    assert slots['1.running_mean'].dtype == torch.float64
    assert slots['0.weight'] is net[0].weight


def test_copy_of_a_network_comes_with_slots_of_its_own(net):
    other, slots = copy.deepcopy((net, TensorSlots(net)))
    with slots.holding({'0.weight': torch.zeros(4, 4)}):
        assert not other[0].weight.any() and net[0].weight.any()
