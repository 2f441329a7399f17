# SPDX-License-Identifier: Apache-2.0
"""Settings of mmengine that expect a single training, in every task."""
from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook, IterTimerHook
from torch import nn

from mmseg.registry import OPTIM_WRAPPERS


class TaskStarts(Hook):
    """Notes what a task finds when its first iteration begins."""

    def __init__(self):
        self.seconds, self.folders = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx == 0:
            self.seconds += [
                hook.time_sec_tot for hook in runner.hooks
                if isinstance(hook, IterTimerHook)
            ]
            self.folders.append(Path(runner.work_dir).name)


@pytest.mark.integration
def test_two_tasks_under_settings_for_one_training(learn, tiny_config,
                                                   tmp_path):
    starts = TaskStarts()
    run = learn(
        tiny_config(
            tmp_path / 'run', ('day', 'night'),
            train_cfg__max_iters=2,
            train_cfg__val_dataloader=dict(batch_size=3, num_workers=0),
            auto_scale_lr=dict(enable=True, base_batch_size=1),
            default_hooks__checkpoint__out_dir=str(tmp_path / 'out'),
            model__gate=dict(type='RandomGate', seed=1, _delete_=True),
            model__init_from='previous'), starts)
    # lr=0.01 for a batch of 1, and the batch is 2.
    assert [rates[0] for rates in run.diary.rates] == [0.02, 0.02]
    # the time left follows from the iterations of the task only
    assert starts.seconds == [0, 0]
    assert starts.folders == ['00_day', '01_night']
    found = sorted(
        str(path.relative_to(tmp_path / 'out'))
        for path in (tmp_path / 'out').rglob('*.p*'))
    assert found == ['00_day/iter_2.pth', '01_night/iter_2.pth']
    assert run.runner.work_dir == str(run.work_dir)
    assert type(run.runner.train_loop).__name__ == 'IncrementalTaskLoop'
    check_wrong_routing(run)


def check_wrong_routing(run):
    """Only images that went astray are predicted twice; the oracle stays."""
    wrong = Counter(row for row, task, expert in run.diary.routed
                    if task in ['day', 'night'][:row + 1] and expert != task)
    assert wrong[1] > 0, 'chance routed everything right: change the seed'
    assert run.diary.predicted == [6 + wrong[0], 6 + wrong[1]]
    oracle = run.runner.train_loop.results.miou['oracle']
    assert oracle[0, 0] == oracle[1, 0]
    digests = json.loads((run.work_dir / 'oracle_digests.json').read_text())
    assert digests['day']['day'] == digests['night']['day']


def test_bfloat16_is_for_the_forward_pass_only():
    layer = nn.Linear(4, 2)
    wrapper = OPTIM_WRAPPERS.build(
        dict(
            type='Bfloat16OptimWrapper',
            accumulative_counts=2,
            optimizer=torch.optim.SGD(layer.parameters(), lr=0.5)))
    before, changed = layer.weight.detach().clone(), []
    for _ in range(2):
        with wrapper.optim_context(layer):
            out = layer(torch.ones(3, 4))
            assert out.dtype == torch.bfloat16
        wrapper.update_params(out.float().square().mean())
        assert layer.weight.dtype == torch.float32
        changed.append(not torch.equal(layer.weight, before))
    # gradients are accumulated before a step
    assert changed == [False, True]
    assert layer(torch.randn(3, 4)).dtype == torch.float32
