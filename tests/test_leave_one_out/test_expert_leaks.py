# SPDX-License-Identifier: Apache-2.0
"""What is left of an expert in others."""
from __future__ import annotations

import pytest

from mmseg_mile.engine.expert_leaks import Parents, find_leaks, parents_of
from mmseg_mile.evaluation.leave_one_out import Leak
from mmseg_mile.structures import Task

NAMES = ('day', 'dusk', 'fog')
UNTOLD = {name: {} for name in NAMES}


def stream(**starts):
    return [
        Task(
            name, ('road', ), ((0, 0, 0), ), {}, {},
            init_from=starts.get(name)) for name in NAMES
    ]


def parents(init_from, told=UNTOLD, adopted=False, **starts):
    return parents_of(stream(**starts), init_from, told, adopted)


@pytest.mark.parametrize('init_from, wanted', [
    ('base', [Parents(()), Parents(()), Parents(())]),
    ('previous', [Parents(
        ()), Parents(
            ('day', )), Parents(('dusk', ))]),
    ('day', [Parents(()), Parents(
        ('day', )), Parents(('day', ))]),
    ('nearest',
     [Parents(
         ()), Parents(('day', )),
      Parents(('day', 'dusk'), False)]),
    ('fused',
     [Parents(
         ()), Parents(('day', )),
      Parents(('day', 'dusk'), False)]),
])
def test_config_says_where_experts_started(init_from, wanted):
    assert list(parents(init_from).values()) == wanted


def test_task_of_its_own_start_comes_before_the_model():
    found = parents('previous', fog='base')
    assert (found['dusk'], found['fog']) == (Parents(('day', )), Parents(()))


def test_what_an_expert_tells_comes_before_the_config():
    told = dict(UNTOLD, dusk=dict(started_from=[]), fog=dict(
        started_from=['day']))  # yapf: disable
    found = parents('nearest', told)
    assert (found['dusk'], found['fog']) == (Parents(()), Parents(('day', )))


def test_config_that_took_experts_over_says_nothing_of_them():
    found = parents('base', adopted=True)
    assert found['day'] == Parents(())
    assert found['dusk'] == Parents(('day', ), False)
    assert found['fog'] == Parents(('day', 'dusk'), False)


def test_isolated_experts_over_a_strange_base_leak_nothing():
    for name in NAMES:
        assert find_leaks((name, ), parents('base'), []) == []


def test_base_has_seen_its_first_task():
    assert find_leaks(('day', 'dusk'), parents('base'),
                      ['day']) == [Leak(('day', 'dusk'), 'base', ('day', ))]
    assert find_leaks(('dusk', ), parents('base'), ['day']) == []


def test_descendants_carry_a_removed_expert_on():
    chain = parents('previous')
    assert find_leaks(('day', ), chain,
                      []) == [Leak(('day', ), 'experts', ('dusk', 'fog'))]
    # fog comes from day through dusk, which is gone itself
    assert find_leaks(('day', 'dusk'), chain,
                      []) == [Leak(('day', 'dusk'), 'experts', ('fog', ))]
    assert find_leaks(('fog', ), chain, []) == []


def test_possible_ancestors_are_told_apart():
    assert find_leaks(('day', ), parents('nearest'), []) == [
        Leak(('day', ), 'experts', ('dusk', )),
        Leak(('day', ), 'experts', ('fog', ), False)
    ]
