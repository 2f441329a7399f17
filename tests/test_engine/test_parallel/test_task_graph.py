# SPDX-License-Identifier: Apache-2.0
"""Which task waits for which, without training any."""
from __future__ import annotations

from concurrent.futures import Future

import pytest

from mmseg_mile.engine.parallel import run_graph


class Engine:
    """Finishes tasks in the order in which it is told to."""

    def __init__(self, order, broken=()):
        self.order = list(order)
        self.broken = broken
        self.futures = {}
        self.log = []
        self.most = 0

    def submit(self, name):
        self.futures[name] = Future()
        self.log.append(f'begin {name}')
        self.most = max(self.most, len(self.futures))
        self._finish_next()
        return self.futures.get(name) or self.last

    def collect(self, name, result):
        assert result == name.upper()
        self.log.append(f'end {name}')
        self._finish_next()

    def _finish_next(self):
        if self.order and self.order[0] in self.futures:
            name = self.order.pop(0)
            self.last = self.futures.pop(name)
            if name in self.broken:
                self.last.set_exception(FloatingPointError('the loss is nan'))
            else:
                self.last.set_result(name.upper())

    def run(self, starts, finished=(), num_workers=9):
        run_graph(starts, finished, self.submit, self.collect, num_workers)
        return self.log


def test_independent_tasks_begin_at_once():
    engine = Engine('cab')
    log = engine.run(dict(a=None, b=None, c=None))
    assert log[:3] == ['begin a', 'begin b', 'begin c']
    assert [entry for entry in log
            if entry[0] == 'e'] == ['end c', 'end a', 'end b']


def test_a_chain_runs_one_by_one():
    assert Engine('abc').run(dict(a=None, b='a', c='b')) == [
        'begin a', 'end a', 'begin b', 'end b', 'begin c', 'end c'
    ]


def test_a_task_waits_for_its_start_only():
    log = Engine('bda').run(dict(a=None, b=None, d='b'))
    assert log.index('begin d') < log.index('end a')
    assert log.index('end b') < log.index('begin d')


def test_no_more_run_than_there_are_workers():
    engine = Engine('abcd')
    engine.run(dict.fromkeys('abcd'), num_workers=2)
    assert engine.most <= 2


def test_finished_tasks_do_not_run_again():
    log = Engine('b').run(dict(a=None, b='a', c='a'), finished=['a', 'c'])
    assert log == ['begin b', 'end b']


def test_after_a_failure_nothing_begins_and_the_rest_is_collected():
    engine = Engine('ab', broken='a')
    with pytest.raises(
            RuntimeError,
            match="task 'a' failed: the loss is nan\n.*--resume"):
        engine.run(dict(a=None, b=None, c='b', d='a'), num_workers=2)
    assert engine.log == ['begin a', 'begin b', 'end b']


@pytest.mark.parametrize('starts', [dict(a='b', b='a'), dict(a='lost')])
def test_tasks_that_can_never_begin_are_named(starts):
    with pytest.raises(ValueError, match='wait for each other'):
        Engine('').run(starts)
