# SPDX-License-Identifier: Apache-2.0
"""Runs of a leaderboard: planned, pretended, interrupted, and for real."""
from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from fabricated_runs import write_run
from filelock import FileLock
from mmengine.config import Config

from mmseg_mile.engine.work_dir import settings_of
from mmseg_mile.files import write_json

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'leaderboard.py'
FILES = ('leaderboard.html', 'leaderboard.md', 'leaderboard.csv', 'runs.csv',
         'leaderboard_tiny.png', 'tables/tiny_scores.csv')
NAN = float('nan')


def load_tool() -> Any:
    spec = spec_from_file_location('leaderboard_tool', TOOL)
    module = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        # as Python does for a script
        patch.syspath_prepend(str(TOOL.parent))
        spec.loader.exec_module(module)
    return module


tool = load_tool()
stream_runs = sys.modules['stream_runs']

# -- the plan ------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path, tiny_config: Callable[..., Config],
           quick: Callable) -> Callable[..., str]:
    """``config(name, **changes)``: path of a config in a file."""

    def dump(name: str, **changes: Any) -> str:
        path = tmp_path / f'{name}.py'
        changes.setdefault('train_cfg__method', name)
        with quick():
            tiny_config(tmp_path / 'unused', ('day', 'night'),
                        **changes).dump(path)
        return str(path)

    return dump


def test_every_config_comes_before_the_second_seed(config: Callable,
                                                   tmp_path: Path) -> None:
    root = tmp_path / 'runs'
    plan = tool.plan_runs([config('b'), config('a')], [3, 1], root)
    assert [run.name for run in plan
            ] == ['b, seed 3', 'a, seed 3', 'b, seed 1', 'a, seed 1']
    assert plan[0].work_dir == root / 'b' / 'seed_3'


def test_command_line_of_a_run(config: Callable, tmp_path: Path) -> None:
    weights = tmp_path / 'weights.pth'
    weights.write_bytes(b'')
    path = config(
        'a',
        model__backbone__backbone__init_cfg=dict(
            type='Pretrained', checkpoint='old'))
    run, = tool.plan_runs([path], [2], tmp_path, ['train_cfg.max_iters=1'],
                          str(weights))
    assert run.arguments == [
        path, '--work-dir',
        str(tmp_path / 'a' / 'seed_2'), '--resume', '--pretrained',
        str(weights), '--cfg-options', 'train_cfg.max_iters=1',
        'randomness.seed=2'
    ]


def test_experts_of_another_config(config: Callable, tmp_path: Path) -> None:
    source = '{work_dir}/mile/seed_{seed}'
    plan = tool.plan_runs(
        [config('gate', train_cfg__experts_from=source),
         config('mile')], [0, 1], tmp_path)
    expected = tmp_path / 'mile' / 'seed_1'
    assert plan[2].needs == plan[3].work_dir == expected
    assert plan[2].arguments[-1] == f'train_cfg.experts_from={expected}'
    assert plan[3].needs is None


def test_experts_of_a_run_that_was_finished_elsewhere(config: Callable,
                                                      tmp_path: Path) -> None:
    path = config('gate', train_cfg__experts_from='{work_dir}/mile')
    with pytest.raises(ValueError, match='name the config that trains them'):
        tool.plan_runs([path], [0], tmp_path)
    write_run(tmp_path / 'mile')
    assert tool.plan_runs([path], [0], tmp_path)[0].needs == tmp_path / 'mile'


@pytest.mark.parametrize('changes, arguments, message', [
    (dict(train_cfg__experts_from='{seeds}'), {}, 'may hold {work_dir} and'),
    (dict(train_cfg__experts_from='{'), {}, 'may hold {work_dir} and'),
    ({}, dict(seeds=[0, 0]), 'seeds must differ'),
    ({}, dict(options=['randomness.seed=1']), 'give --seeds and'),
    ({}, dict(options=['train_cfg.experts_from=a']), 'differ from run to run'),
])
def test_plan_that_cannot_be_met_is_refused(config: Callable, tmp_path: Path,
                                            changes: dict, arguments: dict,
                                            message: str) -> None:
    arguments = dict(dict(seeds=[0]), **arguments)
    with pytest.raises(ValueError, match=message):
        tool.plan_runs([config('a', **changes)], root=tmp_path, **arguments)


def test_configs_that_would_be_mixed_up_are_refused(config: Callable,
                                                    tmp_path: Path) -> None:
    path = config('a')
    with pytest.raises(ValueError, match='different file names'):
        tool.plan_runs([path, path], [0], tmp_path)
    # one name would pass for seeds of one method
    with pytest.raises(ValueError, match="a.py and .*b.py .* 'a'"):
        tool.plan_runs([path, config('b', train_cfg__method='a')], [0],
                       tmp_path)
    other = config(
        'c', train_cfg__method='a', train_cfg__order=['night', 'day'])
    assert len(tool.plan_runs([path, other], [0], tmp_path)) == 2


def test_config_without_a_stream_is_refused(tmp_path: Path) -> None:
    path = tmp_path / 'stock.py'
    path.write_text("train_cfg = dict(type='IterBasedTrainLoop')\n")
    with pytest.raises(ValueError, match='stock.py must have train_cfg.tasks'):
        tool.plan_runs([str(path)], [0], tmp_path)


def test_work_dir_of_other_settings_is_refused(config: Callable,
                                               tmp_path: Path) -> None:
    path = config('a')
    run, = tool.plan_runs([path], [5], tmp_path)
    cfg = Config.fromfile(path)
    cfg.merge_from_dict({'randomness.seed': 5})
    write_json(run.work_dir / 'settings.json', settings_of(cfg, 5))
    tool.plan_runs([path], [5], tmp_path)
    changed = ['train_cfg.max_iters=7']
    with pytest.raises(ValueError, match='train_cfg.max_iters: 6 -> 7'):
        tool.plan_runs([path], [5], tmp_path, changed)
    changed.append('train_cfg.changed_settings=train_cfg,')
    tool.plan_runs([path], [5], tmp_path, changed)


def test_run_is_finished_once_all_is_measured(config: Callable,
                                              tmp_path: Path) -> None:
    run, = tool.plan_runs([config('a')], [0], tmp_path)
    assert run.results is None
    write_run(run.work_dir, routed=((60, 20), (NAN, NAN)))
    assert run.results is None
    write_run(run.work_dir, tasks=('day', ), routed=((60, ), ))
    assert run.results is None
    path = write_run(run.work_dir) / 'results.json'
    assert run.results is not None
    document = json.loads(path.read_text())
    document['cost']['macs'] = None
    path.write_text(json.dumps(document))
    assert run.results is None


# -- running -------------------------------------------------------------

# Takes a run's folder as its work, notes what it was given, and does as the
# name of the run says.
PRETENDER = """
import json, os, pathlib, sys, time
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
    (folder / 'pid.partial').write_text(str(os.getpid()))
    (folder / 'pid.partial').rename(folder / 'pid')
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
    root.mkdir()
    write_run(tmp_path / 'template')
    (tmp_path / 'template' / 'results.json').rename(root / 'template.json')
    (root / 'pretender.py').write_text(PRETENDER)
    return root


def planned(root: Path, *names: str, **needs: str) -> list:
    return [
        tool.Run(name, root / name, [str(root / name)], name, ['day', 'night'],
                 root / needs[name] if name in needs else None)
        for name in names
    ]


def run_all(root: Path, plan: list, **changes: Any) -> dict[str, str]:
    command = [sys.executable, str(root / 'pretender.py')]
    return stream_runs.run_missing(plan, command, **changes)


def started(root: Path) -> list[str]:
    return (root / 'started').read_text().split()


def is_running(pid: int) -> bool:
    path = Path(f'/proc/{pid}/stat')
    # a process that nobody waited for is a zombie, Z
    return path.exists() and path.read_text().rsplit(')')[-1].split()[0] != 'Z'


def test_runs_go_in_order_and_finished_ones_are_kept(root: Path) -> None:
    seen: list[list[str]] = []
    lines: list[str] = []
    assert run_all(root, planned(root, 'c', 'a')) == {}
    assert run_all(
        root,
        planned(root, 'c', 'b', 'a', 'd'),
        on_finished=lambda: seen.append(started(root)),
        log=lines.append) == {}
    assert seen == [['c', 'a', 'b'], ['c', 'a', 'b', 'd']]
    assert lines[0] == '2 of 4 runs are finished already'
    assert lines[-1] == '[4/4] d: average mIoU 45.0 %'


def test_failed_run_does_not_stop_the_others(root: Path) -> None:
    plan = planned(root, 'bad', 'lazy', 'gate', 'late', 'a', gate='bad',
                   late='gate')  # yapf: disable
    failed = run_all(root, plan)
    assert started(root) == ['bad', 'lazy', 'a']
    assert failed['bad'].startswith('exit status 1, the end of ')
    assert failed['bad'].endswith('a long story\nValueError: it cannot be')
    assert failed['lazy'].startswith('ended without having finished')
    assert failed['gate'] == (
        f'{root / "bad"}, whose experts it needs, did not finish')
    assert 'gate' in failed['late']


def test_run_waits_for_the_one_that_it_needs(root: Path) -> None:
    plan = planned(root, 'gate', 'other', 'mile', gate='mile')
    assert run_all(root, plan, jobs=3) == {}
    assert started(root)[2] == 'gate'


def test_jobs_run_at_the_same_time_and_share_the_machine(
        root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(8)))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,6')
    # each of them waits to see the other
    assert run_all(root, planned(root, 'meet1', 'meet2'), jobs=2) == {}
    found = [
        json.loads((root / name / 'environment').read_text())
        for name in ('meet1', 'meet2')
    ]
    assert [f['OMP_NUM_THREADS'] for f in found] == ['4', '4']
    assert [f['CUDA_VISIBLE_DEVICES'] for f in found] == ['4', '6']


@pytest.mark.parametrize('event', [OSError, signal.SIGINT, signal.SIGTERM])
def test_whatever_ends_it_ends_the_runs_and_the_rest_is_run_later(
        root: Path, event: Any) -> None:
    """Ctrl-C, a scheduler's signal, a disk that is full."""
    pid = root / 'slow' / 'pid'

    def end() -> None:
        while not pid.exists():
            time.sleep(0.01)
        if event is OSError:
            raise OSError('the disk is full')
        signal.raise_signal(event)

    plan = planned(root, 'a', 'slow', 'b')
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises((KeyboardInterrupt, OSError)):
        run_all(root, plan, jobs=2, on_finished=end)
    assert signal.getsignal(signal.SIGTERM) == before
    assert not is_running(int(pid.read_text()))
    (root / 'be_quick').touch()
    assert run_all(root, plan) == {}
    assert started(root)[-2:] == ['slow', 'b']


# -- the command ---------------------------------------------------------


@pytest.fixture
def call(run_tool: Callable) -> Callable[..., int]:
    """``call(...)``: exit status of the tool in this process."""

    def run(*arguments: Any) -> int:
        with pytest.raises(SystemExit) as ended:
            run_tool(TOOL.name, *arguments)
        return ended.value.code

    return run


@pytest.mark.integration
def test_two_methods_are_run_and_read(config: Callable, call: Callable,
                                      capfd: Any, tmp_path: Path) -> None:
    gate = config(
        'gate',
        model__gate=dict(type='PrototypeGate', metric='cosine'),
        train_cfg__experts_from='{work_dir}/mile/seed_{seed}')
    runs, short = tmp_path / 'runs', ['--cfg-options', 'train_cfg.max_iters=1']
    arguments = [gate, config('mile'), '--work-dir', runs, '--seeds', '4']
    assert call(*arguments, '--print', *short) == 0
    # the other one waits for it
    line = capfd.readouterr().out.splitlines()[-1]
    assert line.split()[2] == arguments[1]
    assert call(*arguments, *short) == 0
    output = capfd.readouterr().out
    assert '0 of 2 runs are finished already' in output
    assert '[2/2] gate, seed 4: average mIoU' in output
    text = (runs / 'leaderboard.md').read_text()
    assert '| gate ' in text and 'Left out' not in text
    # only reads, and writes the same
    assert call('--results', runs, '--out', tmp_path / 'read') == 0
    for name in FILES:
        assert (tmp_path / 'read' / name).read_bytes() == (runs /
                                                           name).read_bytes()


@pytest.mark.integration
def test_failed_run_is_reported_and_the_table_written(config: Callable,
                                                      call: Callable,
                                                      capfd: Any,
                                                      tmp_path: Path) -> None:
    status = call(
        config('mile'), '--work-dir', tmp_path / 'runs', '--cfg-options',
        'train_cfg.data_root=absent')
    output = capfd.readouterr()
    assert status == 1
    assert '[1/1] mile, seed 0 FAILED' in output.out
    assert 'absent' in output.err.split('FAILED: mile, seed 0')[1]
    assert (tmp_path / 'runs' / 'leaderboard.html').exists()


def test_folder_in_which_another_one_works_is_refused(config: Callable,
                                                      call: Callable,
                                                      capfd: Any,
                                                      tmp_path: Path) -> None:
    with FileLock(tmp_path / '.runs.lock'):
        assert call(config('mile'), '--work-dir', tmp_path) == 1
    assert 'another process runs configs in' in capfd.readouterr().err


@pytest.mark.parametrize(
    'given, message',
    [([], 'give configs to run, or --results to read'),
     (['a.py', '--results', 'b'], 'give configs to run, or --results'),
     (['--results', 'b'], '--results needs --out'),
     (['a.py', '--jobs', '0'], 'argument --jobs: must be at least 1, got 0')])
def test_unclear_command_is_refused(call: Callable, capfd: Any, given: list,
                                    message: str) -> None:
    assert call(*given) == 2
    assert message in capfd.readouterr().err
