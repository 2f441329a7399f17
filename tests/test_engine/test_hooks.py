# SPDX-License-Identifier: Apache-2.0
"""Lost losses, time that is left, and scalars."""
from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.visualization import Visualizer
from mmengine.visualization.vis_backend import BaseVisBackend
from tiny import StopAt

from mmseg.registry import HOOKS
from mmseg_mile.engine.hooks import (FiniteLossHook, StreamProgressHook,
                                     row_scalars)
from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.structures import Task

# -- finite loss --------------------------------------------------------------


def check_loss(number, outputs, max_iters=100):
    """The hook after iteration ``number``, counted from 1."""
    runner = SimpleNamespace(iter=number - 1, max_iters=max_iters)
    FiniteLossHook(interval=10).after_train_iter(
        runner, number - 1, outputs=outputs)


@pytest.mark.parametrize('loss', [float('nan'), float('inf')])
@pytest.mark.parametrize('number, max_iters', [(10, 100), (9, 9)])
def test_loss_that_is_not_finite_raises(loss, number, max_iters):
    with pytest.raises(FloatingPointError) as caught:
        check_loss(number, dict(loss=torch.tensor(loss)), max_iters)
    for word in (f'loss is {loss} at iteration {number}', 'kept',
                 'optimizer.lr', 'clip_grad', '--resume'):
        assert word in str(caught.value)


@pytest.mark.parametrize('number, outputs', [
    (10, dict(loss=torch.tensor(3.5))),
    (9, dict(loss=torch.tensor(float('nan')))),
    (10, None),
])
def test_other_iterations_pass(number, outputs):
    check_loss(number, outputs)


class LoseLoss(Hook):
    """Spoils the head of the second task."""

    def before_stream_task(self, runner, tasks, index):
        self.index = index

    def before_train_iter(self, runner, **kwargs):
        if self.index == 1:
            runner.model.decode_head.conv_seg.weight.data.fill_(float('nan'))


@pytest.mark.integration
def test_earlier_experts_outlive_a_lost_loss(learn, tiny_config, tmp_path):
    cfg = tiny_config(
        tmp_path / 'run', ('day', 'night'), train_cfg__max_iters=2)
    with pytest.raises(FloatingPointError, match='is nan at iteration 2 of t'):
        learn(cfg, LoseLoss())
    index = json.loads((tmp_path / 'run/library/library.json').read_text())
    assert list(index['experts']) == ['day']
    cfg.resume = True
    run = learn(cfg)
    assert run.diary.learned == ['night']
    assert run.runner.train_loop.results.num_finished_rows == 2


# -- progress -----------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """``clock.now`` is what the hook sees."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr('mmseg_mile.engine.hooks.time.perf_counter',
                        lambda: clock.now)
    return clock


STREAM = [
    Task(name, ('a', ), ((0, 0, 0), ), {}, {}, max_iters)
    for name, max_iters in (('day', 100), ('night', 40), ('fog', 60))
]


def lines_of(clock, interval, index, first, last, seconds, row_seconds=0.0):
    """What is logged while iterations take some seconds together."""
    lines = []
    runner = SimpleNamespace(
        logger=SimpleNamespace(info=lines.append),
        iter=first,
        max_iters=STREAM[index].max_iters)
    hook = StreamProgressHook(interval)
    hook.after_stream_row(runner, row_seconds)
    hook.before_stream_task(runner, STREAM, index)
    hook.before_train(runner)
    clock.now += seconds
    for runner.iter in range(first, last):
        hook.after_train_iter(runner, runner.iter)
    return lines


def test_first_task_counts_all_training_that_is_left(clock):
    # 20 iterations of 2 s, 80 of this task left, then 40 and 60 of others
    assert lines_of(clock, 20, 0, 0, 20, 40) == [
        'task 1 of 3 (day): 0:02:40 left, stream: about 0:06:00 left'
    ]


def test_later_task_counts_the_evaluation_that_is_left(clock):
    # 30 s of this task, 60 s of the next, two rows of 30 s
    assert lines_of(
        clock, 10, 1, 0, 10, 10, row_seconds=30.0) == [
            'task 2 of 3 (night): 0:00:30 left, stream: about 0:02:30 left'
        ]


def test_pace_of_a_resumed_task_counts_new_iterations_only(clock):
    # 10 iterations took 20 s, 30 are left
    line, = lines_of(clock, 30, 2, 20, 30, 20)
    assert '(fog): 0:01:00 left' in line


# -- scalars ------------------------------------------------------------------


def make_results(rows, oracle=True):
    """Two of three tasks are learned; the gate is wrong once in four."""
    results = StreamResults.new('city', 'MILE', 0, ['day', 'at night', 'fog'])
    routed = [[60, 20, 10], [50, 70, 12]]
    for row in range(rows):
        for column, value in enumerate(routed[row]):
            results.set_miou('routed', row, column, value)
            if oracle and column <= row:
                results.set_miou('oracle', row, column, value + 2)
        results.cost.set_task(row, 10 * (row + 1), 0, 0)
    if oracle:
        results.set_gate(0.75, [[3, 1], [0, 0]])
    results.compute_scores()
    return results


def test_scalars_of_a_row_are_plain_numbers_that_were_measured():
    found = row_scalars(make_results(2), 1)
    assert found == {
        'stream/miou_routed/day': 50,
        'stream/miou_routed/at night': 70,
        'stream/average_seen': 60,
        'stream/miou_oracle/day': 52,
        'stream/miou_oracle/at night': 72,
        'stream/average_seen_oracle': 62,
        'stream/forgetting': 10,
        'stream/backward_transfer': -10,
        'stream/gate_accuracy': 75,
        'stream/train_seconds': 20
    }
    assert {type(value) for value in found.values()} == {float}
    assert row_scalars(make_results(1, oracle=False), 0) == {
        'stream/miou_routed/day': 60,
        'stream/average_seen': 60,
        'stream/train_seconds': 10
    }


class Memory(BaseVisBackend):
    """A back-end that remembers what it was sent."""

    def __init__(self):
        self.sent = []

    def _init_env(self):
        pass

    @property
    def experiment(self):
        return self

    def add_scalars(self, scalar_dict, step=0, file_path=None, **kwargs):
        self.sent.append((step, scalar_dict))


def test_every_back_end_gets_them_at_the_number_of_learned_tasks():
    visualizer = Visualizer(vis_backends=[Memory()])
    visualizer._vis_backends['other'] = Memory()
    runner = SimpleNamespace(visualizer=visualizer)
    hook = HOOKS.build(dict(type='StreamScalarsHook'))
    for row in range(2):
        hook.before_stream_row(runner, task_index=row)
        hook.after_stream_row(runner, 7.5, make_results(row + 1))
    first, other = visualizer._vis_backends.values()
    assert [step for step, _ in first.sent] == [1, 2]
    assert first.sent == other.sent
    assert first.sent[0][1]['stream/row_seconds'] == 7.5


@pytest.mark.integration
def test_resumed_run_sends_no_row_twice(learn, tiny_config, tmp_path):
    cfg = tiny_config(
        tmp_path / 'run', ('day', 'night'),
        train_cfg__max_iters=2,
        visualizer__vis_backends=[dict(type='LocalVisBackend')],
        custom_hooks=[dict(type='StreamScalarsHook')])
    with pytest.raises(KeyboardInterrupt):
        learn(cfg, StopAt('night', 0))
    cfg.resume = True
    run = learn(cfg)
    learn(cfg)  # nothing is left to do
    lines = [
        json.loads(line)
        for path in sorted((tmp_path / 'run').rglob('scalars.json'))
        for line in path.read_text('utf-8').splitlines()
    ]
    sent = [line for line in lines if 'stream/average_seen' in line]
    assert [line['step'] for line in sent] == [1, 2]
    routed = run.runner.train_loop.results.miou['routed']
    assert sent[1]['stream/average_seen'] == pytest.approx(
        routed[1, :2].mean())
