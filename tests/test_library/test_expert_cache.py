# SPDX-License-Identifier: Apache-2.0
"""What stays in memory, what leaves, and what comes back."""
from __future__ import annotations

import pytest

from mmseg_mile.adapters.adapter_library import ExpertCache


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


def test_nothing_is_loaded_before_it_is_used(cache, reads):
    assert ('head', 'a') in cache and ('head', 'd') not in cache
    assert reads == [] and cache.num_bytes == 0


def test_part_in_use_is_loaded_once(cache, reads):
    assert use(cache, 'a') is use(cache, 'ba')
    assert reads == ['a', 'b']


def test_least_recently_used_leaves_first(cache, reads):
    use(cache, 'abac')
    assert cache.num_bytes == 2**20
    use(cache, 'ac')
    assert reads == ['a', 'b', 'c']
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


def test_released_part_leaves_when_memory_is_needed(cache, reads):
    cache['head', 'trained'] = trained = Half()
    cache.release(('head', 'trained'), Half)
    use(cache, 'a')
    assert use(cache, ['trained']) is trained
    use(cache, 'ab')
    assert use(cache, ['trained']) is not trained


def test_part_larger_than_the_budget_is_held_while_it_is_used():
    cache = ExpertCache(budget_mb=0)
    cache.defer(('head', 'a'), Half)
    cache.defer(('head', 'b'), Half)
    assert cache['head', 'a'] is cache['head', 'a']
    cache['head', 'b']
    assert cache.num_bytes == 2**19


def test_without_a_budget_everything_stays(reads):
    cache = ExpertCache()
    for name in range(50):
        cache.defer(('head', str(name)), Half)
        cache['head', str(name)]
    assert cache.num_bytes == 50 * 2**19


def test_trained_part_replaces_a_stored_one_for_good(cache):
    cache['head', 'a'] = trained = Half()
    use(cache, 'bc')
    assert use(cache, 'a') is trained


def test_stored_part_replaces_a_held_one(cache, reads):
    cache['head', 'd'] = held = Half()
    cache.defer(('head', 'd'), Half)
    assert use(cache, 'd') is not held


def test_removed_part_is_gone(cache):
    use(cache, 'a')
    del cache['head', 'a']
    assert ('head', 'a') not in cache and cache.num_bytes == 0


def test_negative_budget_is_refused():
    with pytest.raises(ValueError, match='memory_budget_mb must be .* got -1'):
        ExpertCache(-1)


class Pair:
    """What two halves make: a MiB, unless told otherwise."""

    def __init__(self, halves: list, size: int = 2**20) -> None:
        self.halves = halves
        self.size = size

    def num_bytes(self) -> int:
        """Size of it."""
        return self.size


@pytest.fixture
def large() -> ExpertCache:
    """Four trained heads, no budget, two sets kept."""
    cache = ExpertCache(num_sets=2)
    for name in 'abcd':
        cache['head', name] = Half()
    return cache


def test_set_that_comes_again_gets_a_joint_part(large):
    assert large.joint('head', ('a', 'b'), Pair) is None
    pair = large.joint('head', ('a', 'b'), Pair)
    assert pair.halves == [large['head', 'a'], large['head', 'b']]
    assert large.joint('head', ('a', 'b'), Pair) is pair
    assert large.num_bytes == 4 * 2**19 + 2**20


def test_set_that_does_not_come_again_soon_gets_none(large):
    for names in (('a', 'b'), ('b', 'c'), ('c', 'd'), ('a', 'b')):
        assert large.joint('head', names, Pair) is None
    assert large.num_bytes == 4 * 2**19


def test_joint_part_of_the_oldest_set_goes(large):
    for _ in range(2):
        large.joint('head', ('a', 'b'), Pair)
    large.joint('head', ('b', 'c'), Pair)
    assert large.num_bytes == 4 * 2**19 + 2**20
    large.joint('head', ('c', 'd'), Pair)
    assert large.num_bytes == 4 * 2**19


def test_sets_of_another_kind_do_not_count(large):
    for name in 'ab':
        large['adapter', name] = Half()
    for _ in range(2):
        head = large.joint('head', ('a', 'b'), Pair)
        adapter = large.joint('adapter', ('a', 'b'), Pair)
        large.joint('adapter', ('b', 'a'), Pair)
    assert adapter.halves == [large['adapter', 'a'], large['adapter', 'b']]
    assert large.joint('head', ('a', 'b'), Pair) is head


@pytest.mark.parametrize('change', [
    lambda cache: cache.__setitem__(('head', 'b'), Half()),
    lambda cache: cache.defer(('head', 'b'), Half),
    lambda cache: cache.__delitem__(('head', 'b')),
])
def test_joint_part_goes_with_what_it_was_made_of(large, change):
    for names in (('a', 'b'), ('c', 'd')) * 2:
        large.joint('head', names, Pair)
    before = large.num_bytes
    other = large.joint('head', ('c', 'd'), Pair)
    change(large)
    assert large.num_bytes <= before - 2**20
    assert large.joint('head', ('a', 'b'), Pair) is None
    assert large.joint('head', ('c', 'd'), Pair) is other


def test_stored_experts_leave_for_their_joint_part(cache, reads):
    for _ in range(3):
        pair = cache.joint('head', ('a', 'b'), Pair)
        assert cache.num_bytes <= 2**20
    assert pair is not None and cache.num_bytes == 2**20
    assert reads == ['a', 'b']


def test_joint_part_leaves_when_memory_is_needed(cache, reads):
    for _ in range(2):
        first = cache.joint('head', ('a', 'b'), Pair)
    use(cache, 'ca')
    assert cache.num_bytes == 2**20
    again = cache.joint('head', ('a', 'b'), Pair)
    assert again is not first and again.num_bytes() == 2**20
    assert cache.num_bytes == 2**20


def test_joint_part_beyond_the_budget_is_not_kept(cache):
    made = []
    for _ in range(3):
        made.append(
            cache.joint('head', ('a', 'b', 'c'),
                        lambda halves: Pair(halves, 3 * 2**19)))
        assert cache.num_bytes <= 2**20
    assert made[0] is None and None is not made[1] is not made[2]
