# SPDX-License-Identifier: Apache-2.0
"""Named adapters and the cache of merged weights."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.adapters.adapter import Adapter
from mmseg_mile.adapters.adapter_library import AdapterLibrary


def adapter(value: float) -> Adapter:
    """Add ``value`` to every entry of layer ``a``."""
    return Adapter(
        {
            'a.lora_A.weight': torch.ones(1, 2),
            'a.lora_B.weight': torch.full((2, 1), value)
        }, {}, 1.0)


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


def test_names_keep_their_order(library):
    assert library.names == ('one', 'two')
    assert 'one' in library and 'three' not in library


@pytest.mark.parametrize('use', [
    lambda library: library['three'],
    lambda library: library.__delitem__('three'),
    lambda library: library.merged({'three': 1.0}, {}),
])
def test_unknown_expert_is_refused_with_the_known_ones(library, use):
    with pytest.raises(ValueError, match=r"'three'; experts: \['one', 'two'"):
        use(library)


def test_cache_of_no_size_is_refused():
    with pytest.raises(ValueError, match='merge_cache_size .* got 0'):
        AdapterLibrary(0)


def test_removed_expert_is_gone_and_the_others_stay(library, base):
    value(library, base, one=1.0)
    del library['one']
    assert library.names == ('two', )
    with pytest.raises(ValueError, match="unknown expert 'one'"):
        library.merged({'one': 1.0}, base)
    assert value(library, base, two=1.0) == 2


def test_merged_weights_are_kept(library, base):
    first = library.merged({'one': 1.0}, base)
    assert library.merged({'one': 1.0}, base) is first


def test_order_of_a_mixture_does_not_matter(library, base):
    first = library.merged({'one': 0.5, 'two': 0.5}, base)
    assert library.merged({'two': 0.5, 'one': 0.5}, base) is first


def test_least_recently_used_is_dropped(library, base):
    one = library.merged({'one': 1.0}, base)
    two = library.merged({'two': 1.0}, base)
    library.merged({'one': 1.0}, base)
    library.merged({'one': 0.5, 'two': 0.5}, base)
    assert library.merged({'one': 1.0}, base) is one
    assert library.merged({'two': 1.0}, base) is not two


def test_replaced_expert_is_merged_anew(library, base):
    assert value(library, base, one=0.5, two=0.5) == 1.5
    library['two'] = adapter(4.)
    assert value(library, base, one=0.5, two=0.5) == 2.5


def test_base_that_was_written_to_is_merged_anew(library, base):
    assert value(library, base, one=1.0) == 1
    base['a.weight'].fill_(10)
    assert value(library, base, one=1.0) == 11


def test_base_that_was_moved_is_merged_anew(library, base):
    value(library, base, one=1.0)
    moved = {'a.weight': base['a.weight'].double()}
    assert library.merged({'one': 1.0}, moved)['a.weight'].dtype == (
        torch.double)


def test_merged_weights_record_no_gradient(library, base):
    base['a.weight'].requires_grad_()
    assert not library.merged({'one': 1.0}, base)['a.weight'].requires_grad


def test_norms_are_renewed_from_a_base_that_was_trained(library, base):
    owner = adapter(1.)
    owner.norm = {'n.weight': torch.zeros(3)}
    library['owner'] = owner
    library.copy_norms(dict(base, **{'n.weight': torch.ones(3)}))
    assert torch.equal(library['owner'].norm['n.weight'], torch.ones(3))
    assert library['one'].norm == {}


def test_stored_adapter_is_loaded_when_it_is_merged(library, base):
    loads = []
    library.defer('late', lambda: (loads.append(1), adapter(3.))[1])
    library.require(['late'])
    assert library.names == ('one', 'two', 'late') and loads == []
    assert value(library, base, late=1.0) == 3
    value(library, base, late=0.5, one=0.5)
    assert loads == [1]


def test_stored_adapter_replaces_merged_weights_of_its_name(library, base):
    assert value(library, base, one=1.0) == 1
    library.defer('one', lambda: adapter(5.))
    assert value(library, base, one=1.0) == 5


def test_dropped_adapter_merges_to_the_same_weights(base):
    library = AdapterLibrary(merge_cache_size=1, memory_budget_mb=0)
    for name in 'ab':
        library.defer(name, lambda: adapter(0.3))
    first = library.merged({'a': 1.0}, base)['a.weight']
    library.merged({'b': 1.0}, base)
    assert library.cache.num_bytes == adapter(0.3).num_bytes()
    assert torch.equal(library.merged({'a': 1.0}, base)['a.weight'], first)


def test_adapter_in_memory_only_survives_any_budget(base):
    library = AdapterLibrary(merge_cache_size=1, memory_budget_mb=0)
    library['trained'] = trained = adapter(7.)
    library.defer('other', lambda: adapter(1.))
    library['other']
    assert library['trained'] is trained
    library.release('trained', lambda: adapter(7.))
    library['other']
    assert library['trained'] is not trained
    assert value(library, base, trained=1.0) == 7


def test_factors_of_a_set_are_stacked_once_it_comes_again(library, base):
    alone = sum(adapter(1.).num_bytes() for _ in range(2))
    for share in (0.25, 0.5, 0.75):
        assert value(library, base, one=share, two=1 - share) == 2 - share
        stacked = library.cache.num_bytes > alone
        assert stacked == (share > 0.25)


def test_order_of_a_mixture_does_not_matter_to_the_stack(library, base):
    value(library, base, one=0.25, two=0.75)
    value(library, base, two=0.5, one=0.5)
    before = library.cache.num_bytes
    assert value(library, base, two=0.25, one=0.75) == 1.25
    assert library.cache.num_bytes == before


def test_single_expert_is_never_stacked(library, base):
    before = library.cache.num_bytes
    for weight in (0.25, 0.5, 1.0):
        assert value(library, base, one=weight) == weight
    assert library.cache.num_bytes == before


@pytest.mark.parametrize('change', [
    lambda library: library.__setitem__('two', adapter(4.)),
    lambda library: library.defer('two', lambda: adapter(4.)),
])
def test_stack_of_a_replaced_expert_is_made_anew(library, base, change):
    for share in (0.25, 0.5):
        value(library, base, one=share, two=1 - share)
    change(library)
    for share in (0.25, 0.5, 0.75):
        assert value(
            library, base, one=share, two=1 - share) == (4 - 3 * share)


def test_stack_of_a_removed_expert_is_gone(library, base):
    for share in (0.25, 0.5):
        value(library, base, one=share, two=1 - share)
    del library['two']
    assert library.cache.num_bytes == adapter(1.).num_bytes()


def test_stack_serves_a_base_that_was_written_to_or_moved(library, base):
    for share in (0.25, 0.5):
        value(library, base, one=share, two=1 - share)
    base['a.weight'].fill_(10)
    assert value(library, base, one=0.5, two=0.5) == 11.5
    assert value(library, base, one=0.75, two=0.25) == 11.25
    moved = {'a.weight': base['a.weight'].double()}
    assert value(library, moved, one=0.75, two=0.25) == 11.25


def test_norms_renewed_from_a_base_enter_the_mixture(library, base):
    for name in library.names:
        library[name].norm['n.weight'] = torch.zeros(3)
        library[name] = library[name]
    base = dict(base, **{'n.weight': torch.ones(3)})
    for share in (0.25, 0.5):
        mixed = library.merged({'one': share, 'two': 1 - share}, base)
        assert torch.equal(mixed['n.weight'], torch.zeros(3))
    library.copy_norms(base)
    mixed = library.merged({'one': 0.5, 'two': 0.5}, base)
    assert torch.equal(mixed['n.weight'], torch.ones(3))


def test_budget_is_kept_while_sets_are_mixed(base):
    size = adapter(1.).num_bytes()
    library = AdapterLibrary(2, memory_budget_mb=4 * size / 2**20)
    for index in range(6):
        library.defer(f'{index}', lambda i=index: adapter(float(i)))
    for _ in range(2):
        for share in (0.25, 0.5, 0.75):
            assert value(library, base, **{'1': share, '5': 1 - share}) == (
                5 - 4 * share)  # yapf: disable
            assert library.cache.num_bytes <= 4 * size
            assert value(library, base, **{str(i): 1 / 6
                                           for i in range(6)}) == (
                                               pytest.approx(2.5))
            assert library.cache.num_bytes <= 4 * size
