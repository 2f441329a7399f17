# SPDX-License-Identifier: Apache-2.0
"""A loss that is lost ends its task and nothing else."""
from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook

from mmseg_mile.engine.hooks import FiniteLossHook


def iteration(number, loss, max_iters=100):
    """The hook after iteration ``number``, counted from 1."""
    runner = SimpleNamespace(iter=number - 1, max_iters=max_iters)
    FiniteLossHook(interval=10).after_train_iter(
        runner, number - 1, outputs=dict(loss=torch.tensor(loss)))


@pytest.mark.parametrize('loss', [float('nan'), float('inf')])
def test_loss_that_is_not_finite_raises(loss):
    with pytest.raises(FloatingPointError, match=f'loss is {loss} at iterati'):
        iteration(10, loss)


def test_message_says_how_to_go_on():
    with pytest.raises(FloatingPointError) as caught:
        iteration(10, float('nan'))
    for word in ('kept', 'optimizer.lr', 'clip_grad', '--resume'):
        assert word in str(caught.value)


def test_finite_loss_passes():
    iteration(10, 3.5)


def test_loss_is_read_every_interval_only():
    iteration(9, float('nan'))


def test_last_iteration_is_always_checked():
    with pytest.raises(FloatingPointError):
        iteration(9, float('nan'), max_iters=9)


def test_step_without_a_loss_passes():
    runner = SimpleNamespace(iter=9, max_iters=100)
    FiniteLossHook().after_train_iter(runner, 9, outputs=None)


class LoseLoss(Hook):
    """Spoils the head of one task."""

    def __init__(self, index):
        self.index, self.spoil = index, False

    def before_stream_task(self, runner, tasks, index):
        self.spoil = index == self.index

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self.spoil:
            runner.model.decode_head.conv_seg.weight.data.fill_(float('nan'))


@pytest.fixture(scope='module')
def lost(learn, tiny_config, tmp_path_factory):
    """A stream whose second task loses its loss: config and message."""
    cfg = tiny_config(
        tmp_path_factory.mktemp('lost') / 'run', ('day', 'night'),
        train_cfg__max_iters=2)
    with pytest.raises(FloatingPointError) as caught:
        learn(cfg, LoseLoss(1))
    return cfg, str(caught.value)


@pytest.mark.integration
def test_lost_loss_stops_the_task(lost):
    assert 'the loss is nan at iteration 2 of this task' in lost[1]


@pytest.mark.integration
def test_earlier_experts_outlive_a_lost_loss(lost, learn, tmp_path):
    cfg, _ = lost
    folder = f'{cfg.work_dir}/library'
    with open(f'{folder}/library.json', encoding='utf-8') as file:
        assert json.load(file)['experts'] == ['day']
    cfg.resume = True
    run = learn(cfg)
    assert run.diary.learned == ['night']
    assert run.runner.train_loop.results.num_finished_rows == 2
