# SPDX-License-Identifier: Apache-2.0
"""The rule of where an expert starts, without a model."""
from __future__ import annotations

import pytest

from mmseg_mile.gates.prototype_gate import PrototypeGate
from mmseg_mile.gates.simple_gates import LastGate
from mmseg_mile.methods.mile.expert_segmentor import check_start, start_of
from mmseg_mile.structures import Task


def task(init_from=None):
    return Task('new', ('road', ), ((0, 0, 0), ), {}, {}, 1, init_from)


@pytest.mark.parametrize('own, default, expected', [
    (None, 'base', None),
    (None, 'previous', {
        'b': 1.0
    }),
    (None, 'nearest', {
        'near': 1.0
    }),
    (None, 'a', {
        'a': 1.0
    }),
    ('base', 'previous', None),
    ('a', 'nearest', {
        'a': 1.0
    }),
    (None, 'fused', dict(a=.4, b=.6)),
])
def test_start_is_that_of_the_task_or_else_of_the_method(
        own, default, expected):
    start = start_of(
        task(own), default, ['a', 'b'], lambda: 'near',
        lambda: dict(a=.4, b=.6))
    assert start == expected


@pytest.mark.parametrize('start', ['base', 'previous', 'nearest', 'fused'])
def test_first_task_starts_from_the_base(start):
    assert start_of(task(), start, [], lambda: 1 / 0, lambda: 1 / 0) is None


@pytest.mark.parametrize('own, default', [('c', 'base'), (None, 'c')])
def test_start_that_is_unknown_is_refused(own, default):
    with pytest.raises(
            ValueError,
            match=r"init_from of task 'new' .*'previous'.*\('a', 'b'\), "
            "got 'c'"):
        check_start(task(own), default, ['a', 'b'], PrototypeGate())


@pytest.mark.parametrize('start', ['nearest', 'fused'])
def test_start_by_distance_asks_for_a_gate_with_distances(start):
    check_start(task(), start, ['a'], PrototypeGate())
    # of the first task nothing is asked
    check_start(task(), start, [], LastGate())
    with pytest.raises(ValueError, match='LastGate has not: use Prototype'):
        check_start(task(), start, ['a'], LastGate())
