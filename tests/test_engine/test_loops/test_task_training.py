# SPDX-License-Identifier: Apache-2.0
"""Settings of the runner that must hold in every task of a stream."""
from __future__ import annotations

import json
from collections import Counter

import pytest
from mmengine.hooks import Hook, IterTimerHook

pytestmark = pytest.mark.integration


class TaskStarts(Hook):
    """Notes what a task finds when its first iteration begins."""

    def __init__(self):
        self.seconds = []
        self.folders = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx == 0:
            timer = next(
                hook for hook in runner.hooks
                if isinstance(hook, IterTimerHook))
            self.seconds.append(timer.time_sec_tot)
            self.folders.append(runner.work_dir)


@pytest.fixture(scope='module')
def starts():
    return TaskStarts()


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    return tmp_path_factory.mktemp('checkpoints')


@pytest.fixture(scope='module')
def run(learn, tiny_config, tmp_path_factory, starts, checkpoints):
    """Two tasks with settings of mmengine that expect a single training."""
    cfg = tiny_config(
        tmp_path_factory.mktemp('settings') / 'run', ('day', 'night'),
        train_cfg__max_iters=2,
        train_cfg__val_dataloader=dict(batch_size=3, num_workers=0),
        auto_scale_lr=dict(enable=True, base_batch_size=1),
        default_hooks__checkpoint__out_dir=str(checkpoints),
        custom_hooks=[
            dict(type='FiniteLossHook', interval=1),
            dict(type='StreamProgressHook', interval=1)
        ],
        model__gate=dict(type='RandomGate', seed=1, _delete_=True),
        model__init_from='previous')
    return learn(cfg, starts)


def test_learning_rate_is_scaled_to_the_batch_in_every_task(run):
    # lr=0.01 for a batch of 1, and the batch is 2.
    assert [rates[0] for rates in run.diary.rates] == [0.02, 0.02]


def test_time_left_counts_iterations_of_the_task_only(run, starts):
    assert starts.seconds == [0, 0]


def test_each_task_works_in_a_folder_of_its_own(run, starts):
    tasks = run.work_dir / 'tasks'
    assert starts.folders == [str(tasks / '00_day'), str(tasks / '01_night')]


def test_runner_gets_its_loop_and_folder_back(run):
    assert run.runner.work_dir == str(run.work_dir)
    assert type(run.runner.train_loop).__name__ == 'IncrementalTaskLoop'


def test_configured_checkpoint_folder_gets_a_folder_per_task(run, checkpoints):
    found = sorted(
        str(path.relative_to(checkpoints))
        for path in checkpoints.rglob('*.p*'))
    assert found == ['00_day/iter_2.pth', '01_night/iter_2.pth']


def test_configured_hooks_replace_those_of_the_loop(run):
    own = [
        hook for hook in run.runner.hooks
        if type(hook).__name__ in ('FiniteLossHook', 'StreamProgressHook')
    ]
    assert [hook.interval for hook in own] == [1, 1]


def test_progress_is_logged(run):
    log = next(run.work_dir.rglob('*.log')).read_text()
    assert 'task 1 of 2 (day): 0:00:0' in log
    assert 'task 2 of 2 (night): 0:00:00 left, stream: about 0:00:' in log


def test_images_that_the_gate_got_wrong_are_predicted_twice(run):
    diary = run.diary
    learned = ['day', 'night']
    wrong = Counter(row for row, task, expert in diary.routed
                    if task in learned[:row + 1] and expert != task)
    assert wrong[1] > 0, 'chance routed everything right: change the seed'
    assert diary.predicted == [6 + wrong[0], 6 + wrong[1]]


def test_wrong_routing_does_not_touch_the_oracle(run):
    results = json.loads((run.work_dir / 'results.json').read_text())
    oracle = results['miou']['oracle']
    assert oracle[0][0] == oracle[1][0]
    digests = json.loads((run.work_dir / 'oracle_digests.json').read_text())
    assert digests['day']['day'] == digests['night']['day']
