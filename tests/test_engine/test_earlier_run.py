# SPDX-License-Identifier: Apache-2.0
"""What a work dir holds, and what is done about it."""
from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.config import Config

from mmseg_mile.engine.work_dir import WorkDir
from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.structures import Task

TASKS = [
    Task(name, ('road', ), ((0, 0, 0), ), {}, {}) for name in ('day', 'night')
]


@pytest.fixture
def earlier(tmp_path):
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
        logger=logging.getLogger('test_earlier_run'))


def unfinished(earlier, index):
    path = earlier.task_folder(index, TASKS[index]) / 'snapshot.safetensors'
    path.parent.mkdir(parents=True)
    path.write_bytes(b'kept')
    return path


def unfinished_row(earlier):
    earlier.row_folder.mkdir()
    (earlier.row_folder / 'day.json').write_text('{}')
    return earlier.row_folder


def test_empty_folder_needs_no_resume(earlier):
    earlier.require_resume(False)


def test_unfinished_task_needs_resume(earlier):
    unfinished(earlier, 0)
    earlier.require_resume(True)
    with pytest.raises(ValueError, match='00_day/snap.* unfinished task: add'):
        earlier.require_resume(False)


def test_digests_are_on_disk_before_a_row_counts_as_complete(
        earlier, monkeypatch):

    def killed(self, path):
        raise KeyboardInterrupt

    monkeypatch.setattr(StreamResults, 'save', killed)
    with pytest.raises(KeyboardInterrupt):
        earlier.save(results(), dict(day=dict(day='a')))
    assert not earlier.results_path.exists()
    assert earlier.read_digests() == dict(day=dict(day='a'))


def test_snapshot_of_a_learned_task_is_removed(earlier):
    paths = unfinished(earlier, 0), unfinished(earlier, 1)
    earlier.clean_up(TASKS, results(learned=1))
    assert [path.exists() for path in paths] == [False, True]


@pytest.mark.parametrize('rows, kept', [(0, True), (1, False)])
def test_row_is_kept_until_it_is_complete(earlier, rows, kept):
    folder = unfinished_row(earlier)
    earlier.clean_up(TASKS, results(learned=1, rows=rows))
    assert folder.exists() == kept


def test_settings_are_noted_and_compared(earlier):
    earlier.check_settings(run_of(model=dict(r=2)), ())
    earlier.check_settings(run_of(model=dict(r=2), resume=True), ())
    with pytest.raises(ValueError, match=r'model\.r: 2 -> 4'):
        earlier.check_settings(run_of(model=dict(r=4), resume=True), ())


def test_run_without_earlier_settings_notes_its_own(earlier):
    earlier.check_settings(run_of(model=dict(r=2), resume=True), ())
    noted = json.loads((earlier.work_dir / 'settings.json').read_text())
    assert noted['model'] == dict(r=2)


def test_announced_change_forgets_what_is_unfinished(earlier):
    earlier.check_settings(run_of(model=dict(r=2)), ())
    left = [unfinished(earlier, 1), unfinished_row(earlier)]
    earlier.cross_path.write_text('{}')
    earlier.check_settings(run_of(model=dict(r=4), resume=True), ['model'])
    assert not any(path.exists() for path in (*left, earlier.cross_path))


def test_same_settings_keep_what_is_unfinished(earlier):
    earlier.check_settings(run_of(model=dict(r=2)), ())
    left = [unfinished(earlier, 1), unfinished_row(earlier)]
    earlier.check_settings(run_of(model=dict(r=2), resume=True), ['model'])
    assert all(path.exists() for path in left)


def test_results_of_a_shorter_stream_are_extended(earlier):
    old = StreamResults.new('tiny', 'MILE', 0, ['day'])
    old.save(earlier.results_path)
    known = earlier.read_results(results(), seed_is_set=True)
    assert known.tasks == ['day', 'night']
    assert np.isnan(known.cost.train_seconds).all()


def test_missing_results_are_named(earlier):
    with pytest.raises(ValueError, match='results.json does not exist'):
        earlier.read_results(results(), seed_is_set=True)
