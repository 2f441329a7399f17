# SPDX-License-Identifier: Apache-2.0
"""A stream that is stopped at every kind of moment, and goes on."""
from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from run_comparison import differences, library_tensors, results_of, unfinished

from mmseg_mile.engine import incremental_task_loop as loop_module
from mmseg_mile.engine.snapshot import TaskSnapshot
from mmseg_mile.files import locked
from mmseg_mile.gates.prototype_gate import PrototypeGate
from mmseg_mile.library.expert_store import ExpertStore
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'train.py'

pytestmark = pytest.mark.integration


class Count:
    """Raises from a call, before or after what it does."""

    def __init__(self, owner, name, call=1, after=False):
        self.owner, self.name = owner, name
        self.call, self.after = call, after

    def __call__(self, patch):
        original, calls = getattr(self.owner, self.name), []

        def counted(*args, **kwargs):
            calls.append(None)
            if len(calls) == self.call and not self.after:
                raise KeyboardInterrupt
            answer = original(*args, **kwargs)
            if len(calls) == self.call:
                raise KeyboardInterrupt
            return answer

        patch.setattr(self.owner, self.name, counted)


class Work(Hook):
    """Counts iterations and evaluated images, and stops after some."""

    def __init__(self, *stop):
        self.stop, self.done = stop, Counter()
        self.task, self.row = '', -1

    def count(self, key, number):
        self.done[key] += 1
        if (key, number or self.done[key]) == self.stop:
            raise KeyboardInterrupt

    def before_stream_task(self, runner, tasks, index):
        self.task = tasks[index].name

    def before_stream_row(self, runner, task_index):
        self.row = task_index

    def after_train_iter(self, runner, batch_idx, **kwargs):
        self.count(self.task, batch_idx + 1)

    def after_stream_val_iter(self, runner, task, **kwargs):
        self.count((self.row, task.name), None)


# In the order of the stream: each part goes on to the next stop.
MOMENTS = {
    'before the first snapshot': Work('day', 1),
    'inside the first task': Work('day', 3),
    'prototypes of the first task': Count(PrototypeGate, 'fit'),
    'before the first expert is saved': Count(ExpertStore, 'save'),
    'after the first expert is saved': Count(
        ExpertStore, 'save', after=True),
    'second image of a row': Work((0, 'night'), 2),
    'as a task begins': Count(ExpertSegmentor, 'begin_task', after=True),
    'between two snapshots': Work('night', 5),
    'as a snapshot is taken': Count(TaskSnapshot, 'save'),
    'last iteration': Work('night', 6),
    'before a snapshot is removed': Count(TaskSnapshot, 'discard'),
    'first image of a row': Work((1, 'day'), 1),
    'last image of a row': Work((1, 'infrared'), 3),
    'inside the last task': Work('infrared', 4),
    'prototypes of the last task': Count(PrototypeGate, 'fit'),
    'cross-expert pass': Count(loop_module, 'evaluate_forced', call=3),
}  # yapf: disable


def test_stream_of_many_parts_ends_like_an_uninterrupted_one(
        learn, tiny_config, tmp_path, stream_run):
    cfg, done = tiny_config(tmp_path / 'run'), Counter()
    for stop in [*MOMENTS.values(), None]:
        work = stop if isinstance(stop, Work) else Work()
        with pytest.MonkeyPatch.context() as patch:
            if isinstance(stop, Count):
                stop(patch)
            if stop is None:
                last = learn(cfg, work)
            else:
                with pytest.raises(KeyboardInterrupt):
                    learn(cfg, work)
        done += work.done
        cfg.resume = True
    assert differences(last.work_dir, stream_run.work_dir) == []
    # Snapshots follow iterations 2, 4 and 6; what came after one is done
    # again in the next part.
    iterations = {
        task: done.pop(task)
        for task in ('day', 'night', 'infrared')
    }
    assert iterations == dict(
        day=1 + 3 + 4, night=5 + 2 + 2 + 2, infrared=4 + 4)
    # Only an unfinished evaluation of a task is repeated.
    repeated = {key: count - 3 for key, count in done.items() if count != 3}
    assert repeated == {(0, 'night'): 2, (1, 'day'): 1, (1, 'infrared'): 3}
    assert (last.runner.train_loop.results.cost.train_seconds > 0).all()


def test_killed_process_goes_on_with_the_same_command(stream_run, tmp_path,
                                                      quick):
    cfg = copy.deepcopy(stream_run.cfg)
    # stock checkpoints, which format the config each time, take longest
    cfg.default_hooks.checkpoint.interval = 100
    with quick():
        cfg.dump(tmp_path / 'tiny.py')
    work_dir = tmp_path / 'run'
    snapshot = work_dir / 'tasks' / '01_night' / 'snapshot.safetensors'

    def start():
        # one thread, as in the run that it is compared with
        return subprocess.Popen(
            [sys.executable, str(TOOL), str(tmp_path / 'tiny.py'),
             '--work-dir', str(work_dir), '--resume'],
            env=dict(os.environ, OMP_NUM_THREADS='1'),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True)  # yapf: disable

    process = start()
    while not snapshot.exists() and process.poll() is None:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read()
    learned = json.loads((work_dir / 'results.json').read_text())
    assert learned['cost']['train_seconds'][1] is None
    process = start()
    errors = process.communicate()[1]
    assert process.returncode == 0, errors
    assert library_tensors(work_dir) == library_tensors(stream_run.work_dir)
    assert unfinished(work_dir) == []
    mine, theirs = results_of(work_dir), results_of(stream_run.work_dir)
    for field in ('miou', 'class_iou', 'gate', 'scores'):
        assert mine[field] == theirs[field]


def files_below(folder):
    """Content and time of change of every file."""
    return {
        str(path.relative_to(folder)):
        (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob('*')) if path.is_file()
    }


def test_extended_stream_leaves_earlier_experts_untouched(
        learn, tiny_config, tmp_path, stream_run):
    """With two workers, then with one, and with a third task at the end."""
    library = tmp_path / 'run' / 'library'
    learn(
        tiny_config(
            tmp_path / 'run', ('day', 'night'),
            train_dataloader__num_workers=2))
    before, old = files_below(library), results_of(tmp_path / 'run')
    run = learn(
        tiny_config(
            tmp_path / 'run', resume=True, train_dataloader__num_workers=1))
    assert (run.diary.learned, run.diary.rows) == (['infrared'], [2])
    after = files_below(library)
    assert before.pop('library.json') != after['library.json']
    assert {name: after[name] for name in before} == before
    assert library_tensors(run.work_dir) == library_tensors(
        stream_run.work_dir)
    mine, whole = results_of(run.work_dir), results_of(stream_run.work_dir)
    assert mine['cost']['kept_params'] == whole['cost']['kept_params']
    assert mine['cost']['macs'] == whole['cost']['macs'] is not None
    for row in range(2):
        assert mine['miou']['routed'][row] == [
            *old['miou']['routed'][row], None
        ]
    crosses = [
        json.loads((folder / 'cross_expert_miou.json').read_text())['miou']
        for folder in (run.work_dir, stream_run.work_dir)
    ]
    assert crosses[0] == crosses[1]


# -- work dirs that do not fit ------------------------------------------------


@pytest.fixture
def left(stream_run, tmp_path):
    """A copy of what the uninterrupted run left."""
    work_dir = tmp_path / 'left'
    shutil.copytree(stream_run.work_dir / 'library', work_dir / 'library')
    for path in stream_run.work_dir.glob('*.json'):
        shutil.copy(path, work_dir)
    return work_dir


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def put_foreign_expert(left):
    expert = ExpertStore(left / 'library').load('night')
    other = ExpertStore(left / 'other')
    other.save_base(dict(weight=torch.zeros(1)), 'f' * 64)
    other.save(replace(expert, base_fingerprint='f' * 64))
    shutil.rmtree(left / 'library' / 'night')
    shutil.copytree(left / 'other' / 'night', left / 'library' / 'night')


def rewrite(left, **fields):
    document = json.loads((left / 'results.json').read_text())
    (left / 'results.json').write_text(json.dumps(dict(document, **fields)))


def test_finished_work_dir_is_loaded_and_an_empty_one_is_begun(
        left, tmp_path, tiny_config, restore):
    assert restore(tiny_config(left, resume=True)) == 3
    assert restore(tiny_config(tmp_path / 'new', resume=True)) == 0


@pytest.mark.parametrize('spoil, changes, message', [
    (None, dict(resume=False), 'results.json holds .* add --resume to go on'),
    (lambda left: (left / 'results.json').unlink(), dict(resume=False),
     'library holds finished'),
    (None, dict(train_cfg__stream='other'), "stream 'tiny', the config says"),
    (None, dict(train_cfg__method='other'), "method 'MILE', the config says"),
    (None, dict(randomness__seed=4), 'seed 3, the config says 4'),
    (None, dict(domains=('night', 'day', 'infrared')),
     'only be continued by tasks at its'),
    (None, dict(domains=('day', 'night')), 'only be continued by tasks at it'),
    (None, dict(optim_wrapper__optimizer__lr=0.5),
     r'optim_wrapper\.optimizer\.lr: 0\.01 -> 0\.5'),
    (lambda left: truncate(left / 'library/night/head.safetensors'), {},
     'night/head.safetensors'),
    (lambda left: truncate(left / 'library/night/prototypes.safetensors'), {},
     'night/prototypes.safetensors'),
    (lambda left: (left / 'results.json').write_text('{"schema"'), {},
     'results.json is not valid JSON'),
    (lambda left: rewrite(left, schema=1), {}, 'results.json .*got 1'),
    (put_foreign_expert, {}, 'night/expert.json .* was changed'),
])
def test_work_dir_that_does_not_fit_is_refused(left, tiny_config, restore,
                                               spoil, changes, message):
    if spoil is not None:
        spoil(left)
    with pytest.raises(ValueError, match=message):
        restore(tiny_config(left, **{'resume': True, **changes}))


def test_work_dir_of_a_run_that_is_at_work_is_left_alone(
        left, tiny_config, learn):
    before = files_below(left / 'library')
    with locked(left), pytest.raises(
            ValueError, match='another process writes .*/left: .*--work-dir'):
        learn(
            tiny_config(
                left,
                resume=True,
                optim_wrapper__optimizer__lr=0.5,
                train_cfg__changed_settings=['optim_wrapper']))
    assert files_below(left / 'library') == before
    settings = json.loads((left / 'settings.json').read_text())
    assert settings['optim_wrapper']['optimizer']['lr'] == 0.01


# -- tasks that are not finished ----------------------------------------------


@pytest.fixture(scope='module')
def stopped(learn, tiny_config, tmp_path_factory):
    """Work dir of a run that was stopped inside its second task."""
    cfg = tiny_config(
        tmp_path_factory.mktemp('stopped') / 'run', ('day', 'night'))
    with pytest.raises(KeyboardInterrupt):
        learn(cfg, Work('night', 3))
    return Path(cfg.work_dir)


@pytest.fixture
def begun(stopped, tmp_path, tiny_config):
    """The config of a copy of it, and the snapshot."""
    work_dir = shutil.copytree(stopped, tmp_path / 'run')
    snapshot, = work_dir.glob('tasks/*/snapshot.safetensors')
    return tiny_config(work_dir, ('day', 'night'), resume=True), snapshot


def test_unfinished_first_task_without_resume_is_refused(begun, restore):
    cfg, snapshot = begun
    shutil.rmtree(Path(cfg.work_dir) / 'library')
    (Path(cfg.work_dir) / 'results.json').unlink()
    cfg.resume = False
    with pytest.raises(ValueError, match='snapshot.safetensors holds .*unfin'):
        restore(cfg)


def test_announced_change_begins_the_unfinished_task_anew(begun, learn):
    cfg, snapshot = begun
    cfg.optim_wrapper.optimizer.lr = 0.5
    cfg.train_cfg.changed_settings = ['optim_wrapper.optimizer.lr']
    work = Work()
    run = learn(cfg, work)
    assert work.done['night'] == 6
    assert run.diary.rates[0][0] == 0.5
    # it is the setting from then on
    del cfg.train_cfg['changed_settings']
    assert learn(cfg).diary.learned == []


def test_broken_snapshot_is_named(begun, learn):
    cfg, snapshot = begun
    truncate(snapshot)
    with pytest.raises(ValueError, match='01_night/snapshot.safetensors'):
        learn(cfg)
