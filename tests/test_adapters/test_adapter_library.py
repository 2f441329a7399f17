# SPDX-License-Identifier: Apache-2.0
"""Named adapters: what is in memory, what is merged, what a network holds."""
from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from mmseg_mile.adapters.adapter import Adapter
from mmseg_mile.adapters.adapter_library import (AdapterLibrary, ExpertCache,
                                                 TensorSlots)


def adapter(value: float) -> Adapter:
    """Add ``value`` to every entry of layer ``a``."""
    return Adapter(
        {
            'a.lora_A.weight': torch.ones(1, 2),
            'a.lora_B.weight': torch.full((2, 1), value)
        }, {}, 1.0)


SIZE = adapter(0.0).num_bytes()


@pytest.fixture
def library() -> AdapterLibrary:
    """Two experts, two merged sets kept."""
    library = AdapterLibrary(merge_cache_size=2)
    library['one'], library['two'] = adapter(1.), adapter(2.)
    return library


@pytest.fixture
def base() -> dict:
    """Layer ``a`` at zero."""
    return {'a.weight': torch.zeros(2, 2)}


def value(library: AdapterLibrary, base: dict, **mixture: float) -> float:
    """Read the merged weight's only value."""
    weight = library.merged(mixture, base)['a.weight']
    assert (weight == weight[0, 0]).all()
    return float(weight[0, 0])


# -- experts by name ---------------------------------------------------------


@pytest.mark.parametrize('use', [
    lambda library: library['three'],
    lambda library: library.__delitem__('three'),
    lambda library: library.require(['one', 'three']),
    lambda library: library.merged({'three': 1.0}, {}),
    lambda library: library.merged({'one': 0.5, 'three': 0.5}, {}),
])  # yapf: disable
def test_unknown_expert_is_refused_with_the_known_ones(library, use):
    assert library.names == ('one', 'two')
    assert 'one' in library and 'three' not in library
    with pytest.raises(ValueError, match=r"'three'; experts: \['one', 'two'"):
        use(library)


def test_removed_expert_is_gone_and_the_others_stay(library, base):
    value(library, base, one=1.0)
    del library['one']
    assert library.names == ('two', )
    with pytest.raises(ValueError, match="unknown expert 'one'"):
        library.merged({'one': 1.0}, base)
    assert value(library, base, two=1.0) == 2


def test_norms_are_renewed_from_a_base_that_was_trained(library, base):
    for name in library.names:
        owner = library[name]
        owner.norm['n.weight'] = torch.zeros(3)
    base = dict(base, **{'n.weight': torch.ones(3)})
    half = {'one': 0.5, 'two': 0.5}
    assert not library.merged(half, base)['n.weight'].any()
    library.copy_norms(base)
    assert torch.equal(library['one'].norm['n.weight'], torch.ones(3))
    assert library.merged(half, base)['n.weight'].all()


# -- merged weights ----------------------------------------------------------


def test_merged_weights_are_kept_whatever_the_order_of_the_mixture(
        library, base):
    first = library.merged({'one': 0.5, 'two': 0.5}, base)
    assert library.merged({'two': 0.5, 'one': 0.5}, base) is first


def test_least_recently_used_is_dropped(library, base):
    one = library.merged({'one': 1.0}, base)
    two = library.merged({'two': 1.0}, base)
    library.merged({'one': 1.0}, base)
    library.merged({'one': 0.5, 'two': 0.5}, base)
    assert library.merged({'one': 1.0}, base) is one
    assert library.merged({'two': 1.0}, base) is not two


def test_merged_weights_record_no_gradient_and_know_no_autocast(library, base):
    base['a.weight'].requires_grad_()
    library['one'] = adapter(1.001)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        weight = library.merged({'one': 1.0}, base)['a.weight']
    assert not weight.requires_grad
    assert float(weight[0, 0]) == pytest.approx(1.001)


def mix(library: AdapterLibrary, base: dict, *shares: float) -> list[float]:
    """Values of mixtures of the same two experts."""
    return [value(library, base, one=s, two=1 - s) for s in shares]


def test_factors_of_a_set_are_stacked_once_it_comes_again(library, base):
    assert mix(library, base, 0.25) == [1.75]
    assert library.cache.num_bytes == 2 * SIZE
    for share in (0.5, 0.75):
        assert mix(library, base, share) == [2 - share]
        assert value(library, base, two=share, one=1 - share) == 1 + share
        assert library.cache.num_bytes == 4 * SIZE


def test_stack_of_the_oldest_set_goes(library, base):
    library['three'] = adapter(3.)
    mix(library, base, 0.25, 0.5)
    value(library, base, two=0.5, three=0.5)
    assert library.cache.num_bytes == 5 * SIZE
    value(library, base, one=0.5, three=0.5)
    assert library.cache.num_bytes == 3 * SIZE


@pytest.mark.parametrize('change', [
    lambda library: library.__setitem__('two', adapter(4.)),
    lambda library: library.defer('two', lambda: adapter(4.)),
])
def test_what_was_made_of_a_replaced_expert_is_made_anew(
        library, base, change):
    assert mix(library, base, 0.25, 0.5) == [1.75, 1.5]
    change(library)
    assert mix(library, base, 0.25, 0.5, 0.75) == [3.25, 2.5, 1.75]
    del library['two']
    assert library.cache.num_bytes == SIZE


def test_base_that_was_written_to_or_moved_is_merged_anew(library, base):
    assert value(library, base, one=1.0) == 1
    mix(library, base, 0.25, 0.5)
    base['a.weight'].fill_(10)
    assert value(library, base, one=1.0) == 11
    assert mix(library, base, 0.5, 0.75) == [11.5, 11.25]
    moved = {'a.weight': base['a.weight'].double()}
    assert mix(library, moved, 0.75) == [11.25]
    assert library.merged({'one': 1.0}, moved)['a.weight'].dtype == (
        torch.double)


# -- memory ------------------------------------------------------------------


def test_stored_adapter_is_loaded_when_it_is_merged(library, base):
    loads = []
    library.defer('late', lambda: (loads.append(1), adapter(3.))[1])
    library.require(['late'])
    assert library.names == ('one', 'two', 'late') and loads == []
    assert value(library, base, late=1.0) == 3
    value(library, base, late=0.5, one=0.5)
    assert loads == [1]


def test_trained_adapter_leaves_only_once_it_is_released(base):
    library = AdapterLibrary(merge_cache_size=1, memory_budget_mb=0)
    library['trained'] = trained = adapter(7.)
    library.defer('other', lambda: adapter(1.))
    library['other']
    assert library['trained'] is trained
    library.release('trained', lambda: adapter(7.))
    library['other']
    assert library['trained'] is not trained
    assert value(library, base, trained=1.0) == 7


def test_budget_is_kept_while_sets_are_mixed(base):
    library = AdapterLibrary(1, memory_budget_mb=4 * SIZE / 2**20)
    for index in range(4):
        library.defer(f'{index}', lambda i=index: adapter(float(i)))
    for share in (0.25, 0.5, 0.75) * 2:
        for first, second in ((0, 3), (0, 3), (1, 2)):
            mixture = {f'{first}': share, f'{second}': 1 - share}
            assert value(library, base, **mixture) == (
                share * first + (1 - share) * second)
            assert library.cache.num_bytes <= 4 * SIZE


class Half:
    """A part of half a MiB."""

    def num_bytes(self) -> int:
        """Size of it."""
        return 2**19


@pytest.fixture
def reads() -> list:
    """Names of the parts that were loaded, in order."""
    return []


@pytest.fixture
def cache(reads) -> ExpertCache:
    """A cache of 1 MiB that may load three parts of half a MiB."""
    cache = ExpertCache(budget_mb=1)
    for name in 'abc':
        cache.defer(('head', name),
                    lambda n=name: (reads.append(n), Half())[1])
    return cache


def use(cache, names):
    """Ask for parts; return the last."""
    return [cache['head', name] for name in names][-1]


def test_part_in_use_is_loaded_once(cache, reads):
    assert ('head', 'a') in cache and ('head', 'd') not in cache
    assert reads == [] and cache.num_bytes == 0
    assert use(cache, 'a') is use(cache, 'ba')
    assert reads == ['a', 'b']


def test_least_recently_used_part_leaves_first(cache, reads):
    use(cache, 'abacac')
    assert cache.num_bytes == 2**20
    use(cache, 'b')
    assert reads == ['a', 'b', 'c', 'b']


def test_budget_counts_all_kinds_together(cache, reads):
    cache.defer(('adapter', 'a'), Half)
    use(cache, 'ab')
    cache['adapter', 'a']
    assert cache.num_bytes == 2**20
    use(cache, 'a')
    assert reads == ['a', 'b', 'a']


def test_part_that_exists_in_memory_only_never_leaves(cache):
    trained = [Half() for _ in range(3)]
    for index, part in enumerate(trained):
        cache['head', f'trained {index}'] = part
    use(cache, 'abc')
    assert [cache['head', f'trained {i}'] for i in range(3)] == trained
    # what was used last stays, beyond the budget
    assert cache.num_bytes == 4 * 2**19


@pytest.mark.parametrize('make, message', [
    (lambda: ExpertCache(-1), 'memory_budget_mb must be .* got -1'),
    (lambda: AdapterLibrary(0), 'merge_cache_size .* got 0'),
])
def test_size_that_holds_nothing_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- tensors in the place of a network's own ---------------------------------


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
    for network in (net, net[0]):
        slots = TensorSlots(network)
        assert list(slots) and set(slots) == set(state(network))
        assert all(slots[k] is value for k, value in state(network).items())


def test_other_tensors_are_seen_inside_the_block_only(net):
    slots, x, own = TensorSlots(net), torch.randn(3, 4), state(net)
    other = copy.deepcopy(net)
    for tensor in state(other).values():
        if tensor.is_floating_point():
            tensor.data.add_(torch.rand_like(tensor))
    before = net(x)
    with slots.holding(state(other)):
        assert torch.equal(net(x), other(x))
        assert not torch.equal(net(x), before)
    assert torch.equal(net(x), before)
    with pytest.raises(KeyError), slots.holding(state(other)):
        raise KeyError
    assert all(state(net)[name] is tensor for name, tensor in own.items())


def test_tensors_may_move_or_be_replaced_and_copies_have_slots_of_their_own(
        net):
    slots = TensorSlots(net)
    net.double()
    net[0].weight = nn.Parameter(torch.zeros(4, 4))
    assert slots['1.running_mean'].dtype == torch.float64
    assert slots['0.weight'] is net[0].weight
    other, slots = copy.deepcopy((net, slots))
    with slots.holding({'0.weight': torch.ones(4, 4)}):
        assert other[0].weight.all() and not net[0].weight.any()
