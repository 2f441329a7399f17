# SPDX-License-Identifier: Apache-2.0
"""Runs in processes of their own, with a program that only pretends."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fabricated_runs import settings_of_run, write_run

from mmseg_mile.apis.leaderboard_plan import PlannedRun
from mmseg_mile.apis.leaderboard_runs import LeaderboardRuns

# Takes a run's folder as its work, notes what it was given, and does as the
# name of the run says.
PRETENDER = """
import json, os, pathlib, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
root = folder.parent
with open(root / 'started', 'a') as file:
    file.write(folder.name + '\\n')
names = ('OMP_NUM_THREADS', 'CUDA_VISIBLE_DEVICES')
(folder / 'environment').write_text(
    json.dumps({name: os.environ.get(name) for name in names}))
if 'bad' in folder.name:
    print('a long story')
    sys.exit('ValueError: it cannot be')
if 'slow' in folder.name and not (root / 'be_quick').exists():
    loader = subprocess.Popen(['sleep', '600'])
    partial = folder / 'pids.partial'
    partial.write_text(f'{os.getpid()} {loader.pid}')
    partial.rename(folder / 'pids')
    time.sleep(600)
if 'meet' in folder.name:
    (folder / 'here').touch()
    while len(list(root.glob('*/here'))) < 2:
        time.sleep(0.01)
if 'lazy' not in folder.name:
    template = (root / 'template.json').read_text()
    (folder / 'results.json').write_text(template)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where runs go, with the results that each of them will have."""
    root = tmp_path / 'runs'
    template = write_run(tmp_path / 'template', settings={}) / 'results.json'
    root.mkdir()
    (root / 'template.json').write_text(template.read_text())
    (root / 'pretender.py').write_text(PRETENDER)
    return root


def planned(root: Path, *names: str, **needs: str) -> list[PlannedRun]:
    return [
        PlannedRun(name, root / name, (str(root / name), ), settings_of_run(),
                   root / needs[name] if name in needs else None)
        for name in names
    ]


def runs_of(root: Path, plan: list[PlannedRun],
            **changes: Any) -> LeaderboardRuns:
    changes.setdefault('say', lambda line: None)
    return LeaderboardRuns(
        plan, [sys.executable, str(root / 'pretender.py')], root, **changes)


def started(root: Path) -> list[str]:
    path = root / 'started'
    return path.read_text().split() if path.exists() else []


def environment(root: Path, name: str) -> dict[str, Any]:
    return json.loads((root / name / 'environment').read_text())


def is_running(pid: int) -> bool:
    path = Path(f'/proc/{pid}/stat')
    # a process that nobody waited for is a zombie, Z
    return path.exists() and path.read_text().rsplit(')')[-1].split()[0] != 'Z'


def runs_on(pid: int) -> bool:
    """Whether a process is there still, after a moment to end in."""
    for _ in range(500):
        if not is_running(pid):
            return False
        # a signal that was sent need not have arrived
        time.sleep(0.01)
    return True


def test_runs_go_in_order_and_each_finish_is_told(root: Path) -> None:
    told: list[list[str]] = []
    failed = runs_of(
        root,
        planned(root, 'c', 'a', 'b'),
        on_finished=lambda: told.append(started(root))).run_all()
    assert failed == []
    assert told == [['c'], ['c', 'a'], ['c', 'a', 'b']]


def test_finished_runs_are_not_run_again(root: Path) -> None:
    lines: list[str] = []
    runs_of(root, planned(root, 'a', 'b')).run_all()
    runs_of(root, planned(root, 'a', 'b', 'c'), say=lines.append).run_all()
    assert started(root) == ['a', 'b', 'c']
    assert lines[0] == '2 of 3 runs are finished already'
    assert lines[-1].startswith('[3/3] c: average mIoU 45.0 %, took ')


def test_time_left_is_told_while_there_is_some(root: Path) -> None:
    lines: list[str] = []
    runs_of(root, planned(root, 'a', 'b'), say=lines.append).run_all()
    assert [' to go' in line for line in lines if line[0] == '['] == [
        True, False]  # yapf: disable


def test_failed_run_does_not_stop_the_others(root: Path) -> None:
    (name, reason, output), = runs_of(root, planned(root, 'bad',
                                                    'a')).run_all()
    assert started(root) == ['bad', 'a']
    assert (name, reason) == ('bad', 'exit status 1')
    assert 'a long story' in output
    assert output.endswith('ValueError: it cannot be')


def test_run_that_ends_without_results_has_failed(root: Path) -> None:
    (_, reason, _), = runs_of(root, planned(root, 'lazy')).run_all()
    assert reason == 'ended without having finished its tasks'


def test_run_waits_for_the_one_that_it_needs(root: Path) -> None:
    plan = planned(root, 'gate', 'other', 'mile', gate='mile')
    assert runs_of(root, plan, jobs=3).run_all() == []
    assert sorted(started(root)[:2]) == ['mile', 'other']
    assert started(root)[2] == 'gate'


def test_run_does_not_wait_for_what_is_finished(root: Path) -> None:
    runs_of(root, planned(root, 'mile')).run_all()
    plan = planned(root, 'gate', 'mile', gate='mile')
    assert runs_of(root, plan).run_all() == []
    assert started(root) == ['mile', 'gate']


def test_run_that_needs_a_failed_one_fails(root: Path) -> None:
    plan = planned(root, 'gate', 'bad', 'a', gate='bad')
    failed = {
        name: reason
        for name, reason, _ in runs_of(root, plan).run_all()
    }
    assert sorted(started(root)) == ['a', 'bad']
    assert failed['gate'] == f'{root / "bad"}, whose experts it needs, failed'


def test_runs_that_wait_for_each_other_fail(root: Path) -> None:
    plan = planned(root, 'a', 'b', 'c', a='b', b='a')
    failed = runs_of(root, plan).run_all()
    assert [name for name, _, _ in failed] == ['a', 'b']
    assert started(root) == ['c']


def test_jobs_run_at_the_same_time(root: Path) -> None:
    # each of them waits to see the other
    assert runs_of(
        root, planned(root, 'meet1', 'meet2'), jobs=2).run_all() == []


def test_jobs_share_the_cores_and_gpus(root: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(8)))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,6')
    runs_of(root, planned(root, 'meet1', 'meet2'), jobs=2).run_all()
    found = [environment(root, name) for name in ('meet1', 'meet2')]
    assert [f['OMP_NUM_THREADS'] for f in found] == ['4', '4']
    assert [f['CUDA_VISIBLE_DEVICES'] for f in found] == ['4', '6']


def test_one_job_has_all_threads_and_the_user_the_last_word(
        root: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    runs_of(root, planned(root, 'a')).run_all()
    monkeypatch.setenv('OMP_NUM_THREADS', '3')
    runs_of(root, planned(root, 'b'), jobs=2).run_all()
    assert environment(root, 'a')['OMP_NUM_THREADS'] is None
    assert environment(root, 'b')['OMP_NUM_THREADS'] == '3'


def test_less_than_one_job_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match='--jobs must be at least 1, got 0'):
        runs_of(root, planned(root, 'a'), jobs=0)


DRIVER = """
import signal
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_leaderboard_runs import planned, runs_of
root = Path(sys.argv[2])
# a shell's background jobs begin with it ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    runs_of(root, planned(root, 'a', 'slow1', 'slow2', 'b'), jobs=2).run_all()
except KeyboardInterrupt:
    sys.exit(130)
"""


def interrupted(root: Path, number: int) -> tuple[int, list[int]]:
    """Exit status of a leaderboard signalled in two runs, and their pids."""
    folders = [Path(__file__).parent, Path(__file__).parents[1]]
    path = os.pathsep.join([
        *map(str, folders),
        os.environ.get('PYTHONPATH', ''),
        str(Path(__file__).parents[2])
    ])
    process = subprocess.Popen(
        [sys.executable, '-c', DRIVER,
         str(folders[0]),
         str(root)],
        env=dict(os.environ, PYTHONPATH=path),
        stderr=subprocess.DEVNULL)
    files = [root / name / 'pids' for name in ('slow1', 'slow2')]
    while process.poll() is None and not all(f.exists() for f in files):
        time.sleep(0.01)
    process.send_signal(number)
    status = process.wait()
    return status, [int(pid) for f in files for pid in f.read_text().split()]


def test_ctrl_c_ends_the_runs_and_the_rest_is_run_later(root: Path) -> None:
    status, pids = interrupted(root, signal.SIGINT)
    assert status == 130
    assert len(pids) == 4
    assert not [pid for pid in pids if runs_on(pid)]
    # two at a time: either of the first two may be the first to be up
    assert sorted(started(root)) == ['a', 'slow1', 'slow2']
    (root / 'be_quick').touch()
    plan = planned(root, 'a', 'slow1', 'slow2', 'b')
    assert runs_of(root, plan).run_all() == []
    assert started(root)[3:] == ['slow1', 'slow2', 'b']


def test_signal_in_the_midst_of_a_start_leaves_no_process(
        root: Path, monkeypatch: Any) -> None:
    popen = subprocess.Popen
    pids: list[int] = []

    def start(*arguments: Any, **options: Any) -> subprocess.Popen:
        process = popen(*arguments, **options)
        pids.append(process.pid)
        signal.raise_signal(signal.SIGTERM)
        return process

    monkeypatch.setattr(subprocess, 'Popen', start)
    with pytest.raises(KeyboardInterrupt):
        runs_of(root, planned(root, 'slow')).run_all()
    assert pids and not runs_on(pids[0])


def test_signals_are_handled_as_before_afterwards(root: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    runs_of(root, planned(root, 'a')).run_all()
    assert signal.getsignal(signal.SIGTERM) == before


def test_runs_that_outlive_a_leaderboard_are_not_run_twice(root: Path) -> None:
    status, pids = interrupted(root, signal.SIGKILL)
    try:
        assert status == -signal.SIGKILL
        assert all(map(is_running, pids))
        with pytest.raises(ValueError, match='a run that outlived one'):
            runs_of(root, planned(root, 'a', 'slow1')).run_all()
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


def test_error_of_the_listener_ends_the_runs(root: Path) -> None:

    def fail() -> None:
        while not (root / 'slow' / 'pids').exists():
            time.sleep(0.01)
        raise OSError('the disk is full')

    with pytest.raises(OSError, match='the disk is full'):
        runs_of(
            root, planned(root, 'a', 'slow'), jobs=2,
            on_finished=fail).run_all()
    pids = (root / 'slow' / 'pids').read_text().split()
    assert not [pid for pid in pids if runs_on(int(pid))]


def test_folder_is_free_again_after_a_run(root: Path) -> None:
    for _ in range(2):
        runs_of(root, planned(root, 'bad')).run_all()
    assert started(root) == ['bad', 'bad']
