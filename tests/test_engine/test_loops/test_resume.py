# SPDX-License-Identifier: Apache-2.0
"""A stream that is interrupted, continued and extended."""
from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from run_comparison import library_tensors, results_of

TENSORS = ('adapter_model', 'norm', 'head', 'prototypes')

pytestmark = pytest.mark.integration


class Stop(Hook):
    """Ends the process at a border, as Ctrl-C does."""

    def __init__(self, task=None, row=None):
        self.task, self.row = task, row
        self.learned, self.rows = [], []

    def before_stream_task(self, runner, tasks, index):
        if index == self.task:
            raise KeyboardInterrupt
        self.learned.append(tasks[index].name)

    def before_stream_row(self, runner, task_index):
        if task_index == self.row:
            raise KeyboardInterrupt
        self.rows.append(task_index)


def interrupt(learn, cfg, **border):
    stop = Stop(**border)
    with pytest.raises(KeyboardInterrupt):
        learn(cfg, stop)
    return stop


def files_below(folder):
    """Content and time of change of every file."""
    return {
        str(path.relative_to(folder)):
        (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob('*')) if path.is_file()
    }


# -- interrupted before the second row, then before the third task ----------


@pytest.fixture(scope='module')
def interrupted(learn, tiny_config, tmp_path_factory):
    """Work dir, what the first two runs did, and the files they left."""
    cfg = tiny_config(tmp_path_factory.mktemp('interrupted') / 'run')
    first = interrupt(learn, cfg, row=1)
    cfg.resume = True
    second = interrupt(learn, cfg, task=2)
    return cfg, first, second


@pytest.fixture(scope='module')
def resumed(learn, interrupted, tmp_path_factory):
    """The last run, and the library's files before it."""
    cfg = interrupted[0]
    before = files_below(Path(cfg.work_dir) / 'library')
    return learn(cfg), before


def test_first_run_learned_two_tasks_and_one_row(interrupted):
    assert (interrupted[1].learned, interrupted[1].rows) == (['day',
                                                              'night'], [0])


def test_trained_task_is_evaluated_but_not_trained_again(interrupted):
    assert (interrupted[2].learned, interrupted[2].rows) == ([], [1])


def test_only_the_missing_task_is_trained(resumed):
    run, _ = resumed
    assert (run.diary.learned, run.diary.rows) == (['infrared'], [2])


def test_resumed_results_equal_uninterrupted_ones(resumed, stream_run):
    run, _ = resumed
    assert results_of(run.work_dir) == results_of(stream_run.work_dir)


def test_resumed_experts_are_byte_identical(resumed, stream_run):
    mine = library_tensors(resumed[0].work_dir)
    assert set(mine) == {'base.safetensors'} | {
        f'{task}/{name}.safetensors'
        for task in ('day', 'night', 'infrared')
        for name in TENSORS
    }
    assert mine == library_tensors(stream_run.work_dir)


def test_resumed_oracle_digests_equal_uninterrupted_ones(resumed, stream_run):
    mine, theirs = (
        json.loads((run.work_dir / 'oracle_digests.json').read_text())
        for run in (resumed[0], stream_run))
    assert mine == theirs


def test_finished_experts_are_not_written_again(resumed):
    run, before = resumed
    after = files_below(run.work_dir / 'library')
    kept = [name for name in before if name != 'library.json']
    assert len(kept) == 1 + 2 * (len(TENSORS) + 2)
    assert {
        name: after[name]
        for name in kept
    } == {
        name: before[name]
        for name in kept
    }


# -- a finished stream of two tasks gets a third ------------------------------


@pytest.fixture(scope='module')
def extended(learn, tiny_config, tmp_path_factory):
    """The longer run, and results and library before it."""
    work_dir = tmp_path_factory.mktemp('extended') / 'run'
    learn(tiny_config(work_dir, ('day', 'night')))
    before = results_of(work_dir), files_below(work_dir / 'library')
    return learn(tiny_config(work_dir, resume=True)), *before


def test_only_the_added_task_is_trained(extended):
    run, _, _ = extended
    assert (run.diary.learned, run.diary.rows) == (['infrared'], [2])


def test_extension_leaves_earlier_experts_byte_identical(extended):
    run, _, before = extended
    after = files_below(run.work_dir / 'library')
    for name, found in before.items():
        assert name == 'library.json' or after[name] == found


def test_extension_grows_the_score_matrix(extended):
    run, before, _ = extended
    after = results_of(run.work_dir)
    assert after['tasks'] == ['day', 'night', 'infrared']
    for kind in ('routed', 'oracle'):
        old = np.array(before['miou'][kind], dtype=float)
        new = np.array(after['miou'][kind], dtype=float)
        np.testing.assert_array_equal(new[:2, :2], old)
        assert np.isnan(new[:2, 2]).all()
        assert not np.isnan(new[2]).any()


def test_added_task_learns_what_it_learns_in_the_whole_stream(
        extended, stream_run):
    mine = library_tensors(extended[0].work_dir)
    assert mine == library_tensors(stream_run.work_dir)


def test_extension_forces_all_experts_on_all_tasks_anew(extended, stream_run):
    mine, theirs = (
        json.loads((run.work_dir / 'cross_expert_miou.json').read_text())
        for run in (extended[0], stream_run))
    assert mine['miou'] == theirs['miou']


# -- work dirs that do not fit ------------------------------------------------


@pytest.fixture
def left(stream_run, tmp_path):
    """A copy of what the uninterrupted run left."""
    work_dir = tmp_path / 'left'
    shutil.copytree(stream_run.work_dir / 'library', work_dir / 'library')
    for path in stream_run.work_dir.glob('*.json'):
        shutil.copy(path, work_dir)
    return work_dir


@pytest.fixture
def restore(quick):

    def run(cfg):
        import mmseg_mile  # noqa: F401  registers the components
        with quick():
            return Runner.from_cfg(cfg).train_loop.restore()

    return run


def test_finished_work_dir_is_taken_up_with_resume(left, tiny_config, restore):
    assert restore(tiny_config(left, resume=True)) == 3


def test_empty_work_dir_starts_from_scratch(tmp_path, tiny_config, restore):
    assert restore(tiny_config(tmp_path / 'new', resume=True)) == 0


def test_results_without_resume_are_refused(left, tiny_config, restore):
    with pytest.raises(ValueError, match='add --resume to go on'):
        restore(tiny_config(left))


def test_library_without_results_is_refused(left, tiny_config, restore):
    (left / 'results.json').unlink()
    with pytest.raises(ValueError, match='library holds finished tasks'):
        restore(tiny_config(left))


@pytest.mark.parametrize('change, message', [
    (dict(train_cfg__stream='other'), "stream 'tiny', the config says 'othe"),
    (dict(train_cfg__method='other'), "method 'MILE', the config says 'othe"),
    (dict(randomness__seed=4), 'seed 3, the config says 4'),
])
def test_results_of_another_run_are_refused(left, tiny_config, restore, change,
                                            message):
    with pytest.raises(ValueError, match=message):
        restore(tiny_config(left, resume=True, **change))


@pytest.mark.parametrize('domains', [('night', 'day', 'infrared'),
                                     ('day', 'infrared'), ('day', 'night')])
def test_other_order_of_tasks_is_refused(left, tiny_config, restore, domains):
    with pytest.raises(ValueError, match='only be continued by tasks at its'):
        restore(tiny_config(left, domains, resume=True))


@pytest.mark.parametrize('name', TENSORS)
def test_truncated_expert_file_is_named(left, tiny_config, restore, name):
    path = left / 'library' / 'night' / f'{name}.safetensors'
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f'night/{name}.safetensors'):
        restore(tiny_config(left, resume=True))


def test_broken_results_file_is_named(left, tiny_config, restore):
    path = left / 'results.json'
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match='results.json is not valid JSON'):
        restore(tiny_config(left, resume=True))


def test_expert_of_another_base_is_refused(left, tmp_path, tiny_config,
                                           restore):
    from mmseg_mile.library.expert_store import ExpertStore
    expert = ExpertStore(left / 'library').load('night')
    other = ExpertStore(tmp_path / 'other')
    other.save_base(dict(weight=torch.zeros(1)), 'f' * 64)
    other.save(replace(expert, base_fingerprint='f' * 64))
    shutil.rmtree(left / 'library' / 'night')
    shutil.copytree(tmp_path / 'other' / 'night', left / 'library' / 'night')
    with pytest.raises(ValueError, match='night/expert.json .* was changed'):
        restore(tiny_config(left, resume=True))


# -- settings that changed, and tasks that are not finished ------------------


class StopTraining(Hook):
    """Ends the process after three iterations of the second task."""

    def __init__(self):
        self.index, self.first = None, None

    def before_stream_task(self, runner, tasks, index):
        self.index = index

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self.first is None:
            self.first = batch_idx
        if (self.index, batch_idx) == (1, 3):
            raise KeyboardInterrupt


class FirstIteration(StopTraining):
    """Notes at which iteration a run begins to train."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self.first is None:
            self.first = batch_idx


@pytest.fixture(scope='module')
def stopped(learn, tiny_config, tmp_path_factory):
    """Work dir of a run that was stopped inside its second task."""
    cfg = tiny_config(
        tmp_path_factory.mktemp('stopped') / 'run', ('day', 'night'))
    with pytest.raises(KeyboardInterrupt):
        learn(cfg, StopTraining())
    return Path(cfg.work_dir)


@pytest.fixture
def unfinished(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / 'run')


def snapshots(work_dir):
    return list(work_dir.glob('tasks/*/snapshot.safetensors'))


def test_task_goes_on_at_its_snapshot(unfinished, tiny_config, learn):
    first = FirstIteration()
    learn(tiny_config(unfinished, ('day', 'night'), resume=True), first)
    assert first.first == 2
    assert snapshots(unfinished) == []


def test_unfinished_first_task_without_resume_is_refused(
        unfinished, tiny_config, restore):
    shutil.rmtree(unfinished / 'library')
    (unfinished / 'results.json').unlink()
    with pytest.raises(ValueError, match='snapshot.safetensors holds an unf'):
        restore(tiny_config(unfinished, ('day', 'night')))


def test_changed_setting_is_refused_by_name(unfinished, tiny_config, restore):
    changed = tiny_config(
        unfinished, ('day', 'night'),
        resume=True,
        optim_wrapper__optimizer__lr=0.5)
    message = r'optim_wrapper\.optimizer\.lr: 0\.01 -> 0\.5'
    with pytest.raises(ValueError, match=message):
        restore(changed)
    assert snapshots(unfinished)


def test_announced_change_begins_the_unfinished_task_anew(
        unfinished, tiny_config, learn):
    first = FirstIteration()
    changed = tiny_config(
        unfinished, ('day', 'night'),
        resume=True,
        optim_wrapper__optimizer__lr=0.5,
        train_cfg__changed_settings=['optim_wrapper.optimizer.lr'])
    run = learn(changed, first)
    assert (run.diary.learned, first.first) == (['night'], 0)
    assert run.diary.rates[0][0] == 0.5


def test_announced_change_is_the_setting_from_then_on(unfinished, tiny_config,
                                                      restore, forget_runner):
    options = dict(resume=True, optim_wrapper__optimizer__lr=0.5)
    restore(
        tiny_config(
            unfinished, ('day', 'night'),
            train_cfg__changed_settings=['optim_wrapper'],
            **options))
    forget_runner()
    assert restore(tiny_config(unfinished, ('day', 'night'), **options)) == 1


def test_broken_snapshot_is_named(unfinished, tiny_config, learn):
    path, = snapshots(unfinished)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match='01_night/snapshot.safetensors'):
        learn(tiny_config(unfinished, ('day', 'night'), resume=True))


def test_interval_of_snapshots_must_be_positive(tmp_path, tiny_config,
                                                restore):
    with pytest.raises(ValueError, match='checkpoint_interval must be >= 1'):
        restore(tiny_config(tmp_path / 'r', train_cfg__checkpoint_interval=0))
