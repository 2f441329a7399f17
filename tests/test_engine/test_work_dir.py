# SPDX-License-Identifier: Apache-2.0
"""Settings, provenance, and what a work dir holds."""
from __future__ import annotations

import copy
import logging
import subprocess
from importlib.metadata import version
from types import SimpleNamespace

import pytest
from mmengine.config import Config

import mmseg_mile
from mmseg_mile.engine import work_dir as module
from mmseg_mile.engine.work_dir import (WorkDir, changes, refuse, reserved,
                                        settings_of)
from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.files import locked
from mmseg_mile.structures import Task

CONFIG = dict(
    model=dict(type='ExpertSegmentor', backbone=dict(depths=(2, 2))),
    train_dataloader=dict(batch_size=2, num_workers=0),
    train_cfg=dict(
        max_iters=5,
        data_root='here',
        checkpoint_interval=10,
        val_dataloader=dict(batch_size=1, num_workers=0),
        tasks=[dict(name='day'), dict(name='night')]),
    optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
    default_hooks=dict(logger=dict(type='LoggerHook', interval=5)),
    custom_hooks=[dict(type='StreamPicturesHook')],
    env_cfg=dict(mp_cfg=dict(opencv_num_threads=0)),
    visualizer=dict(type='SegLocalVisualizer'),
    randomness=dict(seed=3),
    work_dir='work_dirs/a',
    resume=False,
    lr=0.1)


def changed(options, seed=3):
    old, new = Config(copy.deepcopy(CONFIG)), Config(copy.deepcopy(CONFIG))
    new.merge_from_dict(options)
    return changes(settings_of(old, 3), settings_of(new, seed))


@pytest.mark.parametrize('options', [
    {},
    {'work_dir': 'elsewhere', 'resume': True, 'launcher': 'pytorch'},
    {'train_dataloader.num_workers': 4, 'train_dataloader.pin_memory': True},
    {'train_cfg.val_dataloader.num_workers': 2},
    {'train_cfg.data_root': 'there', 'train_cfg.checkpoint_interval': 1,
     'train_cfg.num_checked': 0, 'train_cfg.changed_settings': ['model']},
    {'default_hooks.logger.interval': 1, 'custom_hooks': []},
    {'env_cfg.mp_cfg.opencv_num_threads': 2, 'log_level': 'DEBUG'},
    {'visualizer': dict(type='Visualizer'), 'lr': 0.2},
    {'train_cfg.tasks': [dict(name=n) for n in ('day', 'night', 'fog')]},
    {'train_cfg.tasks': [dict(name='night'), dict(name='day')],
     'train_cfg.order': ['day', 'night']},
    {'train_cfg.order': ['day', 'night']},
    {'train_cfg.order': None},
])  # yapf: disable
def test_change_without_effect_is_none(options):
    assert changed(options) == {}


@pytest.mark.parametrize('options, found', [
    ({'optim_wrapper.optimizer.lr': 0.2},
     {'optim_wrapper.optimizer.lr': (0.1, 0.2)}),
    ({'train_cfg.max_iters': 6}, {'train_cfg.max_iters': (5, 6)}),
    ({'train_dataloader.batch_size': 4},
     {'train_dataloader.batch_size': (2, 4)}),
    ({'train_cfg.val_dataloader.batch_size': 4},
     {'train_cfg.val_dataloader.batch_size': (1, 4)}),
    ({'model.init_from': 'base'}, {'model.init_from': ('absent', 'base')}),
    ({'model.backbone.depths': (2, 3)}, {'model.backbone.depths.1': (2, 3)}),
    ({'model.backbone.depths': (2, )},
     {'model.backbone.depths': ([2, 2], [2])}),
    ({'param_scheduler': [dict(type='PolyLR')]},
     {'param_scheduler': ('absent', [dict(type='PolyLR')])}),
    ({'train_cfg.order': ['night', 'day']},
     {'train_cfg.tasks.0.name': ('day', 'night'),
      'train_cfg.tasks.1.name': ('night', 'day')}),
    ({'train_cfg.tasks': [dict(name='day', max_iters=9), dict(name='night')]},
     {'train_cfg.tasks.0.max_iters': ('absent', 9)}),
])  # yapf: disable
def test_change_with_effect_is_named(options, found):
    assert changed(options) == found


def test_seed_that_was_drawn_counts():
    assert changed({}, seed=7) == {'randomness.seed': (3, 7)}


def test_every_change_is_refused_with_both_values():
    found = changed({'optim_wrapper.optimizer.lr': 0.2,
                     'train_cfg.max_iters': 6})  # yapf: disable
    with pytest.raises(ValueError) as caught:
        refuse(found, ['optim', 'optim_wrapper.optimizer.l'], 'work_dirs/a')
    for part in ('work_dirs/a', 'optim_wrapper.optimizer.lr: 0.1 -> 0.2',
                 'train_cfg.max_iters: 5 -> 6', 'changed_settings'):
        assert part in str(caught.value)


@pytest.mark.parametrize('allowed',
                         [['optim_wrapper'], ['optim_wrapper.optimizer.lr']])
def test_announced_change_is_accepted(allowed):
    refuse(changed({'optim_wrapper.optimizer.lr': 0.2}), allowed, 'a')


# -- provenance ---------------------------------------------------------------


def test_provenance_names_versions_and_device(monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    monkeypatch.setattr('torch.get_num_threads', lambda: 3)
    found = module.provenance(
        Config(
            dict(
                a=dict(type='torch.nn.GELU'),
                work_dir='here',
                resume=True,
                launcher='pytorch')))
    assert set(found) == {'commit', 'versions', 'config', 'device'}
    # without what differs from start to start; a library names no modules
    assert found['config'] == dict(a=dict(type='GELU'))
    assert found['versions']['mmseg_mile'] == mmseg_mile.__version__
    for name in ('torch', 'peft', 'numpy'):
        assert found['versions'][name] == version(name)
    assert {'python', 'mmseg', 'mmengine', 'mmcv'} < set(found['versions'])
    assert found['device'].startswith('cpu ')
    assert found['device'].endswith(', 3 threads')


@pytest.mark.parametrize('answer, commit', [
    (subprocess.CompletedProcess([], 0, stdout='0123-dirty\n'), '0123-dirty'),
    (FileNotFoundError('git'), None),
    (subprocess.CalledProcessError(128, 'git'), None),
])
def test_commit_is_what_git_says(monkeypatch, answer, commit):

    def run(*args, **kwargs):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(subprocess, 'run', run)
    assert module.commit() == commit


# -- the folder ---------------------------------------------------------------

TASKS = [
    Task(name, ('road', ), ((0, 0, 0), ), {}, {}) for name in ('day', 'night')
]


@pytest.fixture
def work_dir(tmp_path):
    return WorkDir(tmp_path)


def results(learned=1, rows=1):
    made = StreamResults.new('tiny', 'MILE', 0, [t.name for t in TASKS])
    made.cost.train_seconds[:learned] = 1.
    made.miou['routed'][:rows] = 50.
    return made


def run_of(resume=False, **fields):
    return SimpleNamespace(
        cfg=Config(dict(fields, resume=resume)),
        seed=0,
        logger=logging.getLogger('test_work_dir'))


def unfinished(work_dir, index):
    """A snapshot of a task, and a score of a row in progress."""
    snapshot = work_dir.task_folder(index,
                                    TASKS[index]) / ('snapshot.safetensors')
    row = work_dir.row_cache('day').folder
    for folder in (snapshot.parent, row):
        folder.mkdir(parents=True, exist_ok=True)
    snapshot.write_bytes(b'kept')
    return snapshot, row


def test_work_dir_is_reserved_for_one_run(tmp_path):
    path = tmp_path / 'deep' / 'run'
    with reserved(path), reserved(str(path)):
        with pytest.raises(ValueError, match='deep/run: wait .*--work-dir'):
            with locked(path, wait=False):
                pass
    with locked(path), pytest.raises(ValueError, match='another process wri'):
        with reserved(path):
            pass
    with pytest.raises(KeyboardInterrupt), reserved(path):
        raise KeyboardInterrupt
    with reserved(path):
        pass


def test_unfinished_task_needs_resume(work_dir):
    work_dir.require_resume(False)
    unfinished(work_dir, 0)
    work_dir.require_resume(True)
    with pytest.raises(ValueError, match='00_day/snap.* unfinished tasks: ad'):
        work_dir.require_resume(False)


def test_digests_are_on_disk_before_a_row_counts_as_complete(
        work_dir, monkeypatch):

    def killed(self, path):
        raise KeyboardInterrupt

    monkeypatch.setattr(StreamResults, 'save', killed)
    with pytest.raises(KeyboardInterrupt):
        work_dir.save(results(), dict(day=dict(day='a')))
    assert not work_dir.results_path.exists()
    assert work_dir.read_digests() == dict(day=dict(day='a'))


@pytest.mark.parametrize('rows, kept', [(0, True), (1, False)])
def test_what_is_complete_is_cleaned_up(work_dir, rows, kept):
    learned, row = unfinished(work_dir, 0)
    begun, _ = unfinished(work_dir, 1)
    work_dir.clean_up(TASKS, results(learned=1, rows=rows))
    assert (learned.exists(), begun.exists()) == (False, True)
    assert row.exists() == kept


def test_settings_are_noted_and_compared(work_dir):
    work_dir.check_settings(run_of(model=dict(r=2), resume=True), ())
    kept = unfinished(work_dir, 1)
    work_dir.check_settings(run_of(model=dict(r=2), resume=True), ())
    with pytest.raises(ValueError, match=r'model\.r: 2 -> 4'):
        work_dir.check_settings(run_of(model=dict(r=4), resume=True), ())
    assert all(path.exists() for path in kept)


def test_announced_change_removes_what_is_unfinished(work_dir):
    work_dir.check_settings(run_of(model=dict(r=2)), ())
    left = unfinished(work_dir, 1)
    work_dir.cross_path.write_text('{}')
    work_dir.check_settings(run_of(model=dict(r=4), resume=True), ['model'])
    assert not any(path.exists() for path in (*left, work_dir.cross_path))
    work_dir.check_settings(run_of(model=dict(r=4), resume=True), ())


@pytest.mark.parametrize('field, value', [('stream', 'other'),
                                          ('method', 'EWC'), ('seed', 4)])
def test_results_of_another_run_are_refused(work_dir, field, value):
    new = results()
    with pytest.raises(ValueError, match='results.json does not exist'):
        work_dir.read_results(new, seed_is_set=True)
    new.save(work_dir.results_path)
    setattr(new, field, value)
    with pytest.raises(ValueError, match=f'{field} .* config says .?{value}'):
        work_dir.read_results(new, seed_is_set=True)
    # a seed that was drawn is that of the results
    new = results()
    new.seed = 7
    assert work_dir.read_results(new, seed_is_set=False).seed == 0
