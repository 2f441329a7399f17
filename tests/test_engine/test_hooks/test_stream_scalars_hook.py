# SPDX-License-Identifier: Apache-2.0
"""Scores of finished rows on their way to TensorBoard and the like."""
from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.hooks import Hook
from mmengine.visualization import Visualizer
from mmengine.visualization.vis_backend import BaseVisBackend

from mmseg.registry import HOOKS
from mmseg_mile.engine.hooks import row_scalars
from mmseg_mile.evaluation.results import StreamResults


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


@pytest.fixture
def runner():
    """A runner whose visualizer hands all to two back-ends."""
    visualizer = Visualizer(vis_backends=[Memory()])
    visualizer._vis_backends['other'] = Memory()
    return SimpleNamespace(visualizer=visualizer)


def send(runner, hook, row, results):
    hook.before_stream_row(runner, task_index=row)
    hook.after_stream_row(runner, seconds=7.5, results=results)


def test_scalars_of_a_row_are_its_scores():
    assert row_scalars(make_results(2), 1) == {
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


def test_what_was_not_measured_is_left_out():
    assert row_scalars(make_results(1, oracle=False), 0) == {
        'stream/miou_routed/day': 60,
        'stream/average_seen': 60,
        'stream/train_seconds': 10
    }


def test_values_are_plain_numbers():
    # numpy's are no JSON
    assert {type(v)
            for v in row_scalars(make_results(2), 1).values()} == {float}


def test_every_back_end_gets_them_at_the_number_of_learned_tasks(runner):
    hook = HOOKS.build(dict(type='StreamScalarsHook'))
    for row in range(2):
        send(runner, hook, row, make_results(row + 1))
    first, other = runner.visualizer._vis_backends.values()

    assert [step for step, _ in first.sent] == [1, 2]
    assert first.sent == other.sent
    assert first.sent[0][1]['stream/row_seconds'] == 7.5


class StopTraining(Hook):
    """Ends a run in the training of the second task."""

    def before_stream_task(self, runner, tasks, index):
        if index == 1:
            raise KeyboardInterrupt


@pytest.mark.integration
def test_resumed_run_sends_no_row_twice(learn, tiny_config, tmp_path):
    cfg = tiny_config(
        tmp_path / 'run', ('day', 'night'),
        train_cfg__max_iters=2,
        visualizer__vis_backends=[dict(type='LocalVisBackend')],
        custom_hooks=[dict(type='StreamScalarsHook')])
    with pytest.raises(KeyboardInterrupt):
        learn(cfg, StopTraining())
    cfg.resume = True
    run = learn(cfg)
    learn(cfg)  # nothing is left to do

    lines = [
        json.loads(line) for path in (tmp_path / 'run').rglob('scalars.json')
        for line in path.read_text('utf-8').splitlines()
    ]
    sent = {
        line['step']: line['stream/average_seen']
        for line in lines if 'stream/average_seen' in line
    }
    assert len([line for line in lines if 'stream/average_seen' in line]) == 2
    routed = run.runner.train_loop.results.miou['routed']
    assert sent == pytest.approx({1: routed[0, 0], 2: np.mean(routed[1, :2])})
