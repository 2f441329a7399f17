# SPDX-License-Identifier: Apache-2.0
"""The line that says how long a stream will take."""
from __future__ import annotations

from types import SimpleNamespace

import pytest

from mmseg_mile.engine.hooks import StreamProgressHook
from mmseg_mile.structures import Task


@pytest.fixture
def clock(monkeypatch):
    """``clock.now`` is what the hook sees."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr('mmseg_mile.engine.hooks.time.perf_counter',
                        lambda: clock.now)
    return clock


@pytest.fixture
def stream():
    return [
        Task(name, ('a', ), ((0, 0, 0), ), {}, {}, max_iters)
        for name, max_iters in (('day', 100), ('night', 40), ('fog', 60))
    ]


@pytest.fixture
def runner():
    lines = []
    return SimpleNamespace(
        lines=lines,
        logger=SimpleNamespace(info=lines.append),
        iter=0,
        max_iters=100)


def train(hook, runner, iterations):
    for index in range(iterations):
        runner.iter = index
        hook.after_train_iter(runner, index)


def test_first_task_counts_all_training_that_is_left(clock, stream, runner):
    hook = StreamProgressHook(interval=20)
    hook.before_stream_task(runner, stream, 0)
    clock.now += 40  # 20 iterations of 2 s
    train(hook, runner, 20)
    # 80 of this task, then 40 and 60 of later ones.
    assert runner.lines == [
        'task 1 of 3 (day): 0:02:40 left, stream: about 0:06:00 left'
    ]


def test_later_task_counts_the_evaluation_that_is_left(clock, stream, runner):
    hook = StreamProgressHook(interval=10)
    hook.after_stream_row(runner, seconds=30.0)
    hook.before_stream_task(runner, stream, 1)
    runner.max_iters = 40
    clock.now += 10
    train(hook, runner, 10)
    # 30 s of this task, 60 s of the next, two rows of 30 s.
    assert runner.lines == [
        'task 2 of 3 (night): 0:00:30 left, stream: about 0:02:30 left'
    ]


def test_pace_of_a_resumed_task_counts_new_iterations_only(
        clock, stream, runner):
    hook = StreamProgressHook(interval=30)
    hook.before_stream_task(runner, stream, 2)
    runner.iter, runner.max_iters = 20, 40
    hook.before_train(runner)
    clock.now += 20
    runner.iter = 29
    hook.after_train_iter(runner, 29)
    # 10 iterations took 20 s, 10 are left.
    assert '0:00:20 left' in runner.lines[0]


def test_line_comes_every_interval(clock, stream, runner):
    hook = StreamProgressHook(interval=3)
    hook.before_stream_task(runner, stream, 0)
    train(hook, runner, 10)
    assert len(runner.lines) == 3


def test_training_outside_a_stream_logs_nothing(runner):
    train(StreamProgressHook(interval=1), runner, 5)
    assert not runner.lines
