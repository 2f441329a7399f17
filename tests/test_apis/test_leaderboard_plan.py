# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fabricated_runs import write_run
from mmengine.config import Config

from mmseg_mile.apis.leaderboard_plan import PlannedRun, plan_runs
from mmseg_mile.engine.work_dir import settings_of
from mmseg_mile.files import write_json


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


def option(run: PlannedRun, key: str) -> str:
    """The last value of a setting on the command line of a run."""
    return [a for a in run.arguments if a.startswith(f'{key}=')][-1]


def test_every_config_comes_before_the_second_seed(config: Callable,
                                                   tmp_path: Path) -> None:
    plan = plan_runs([config('b'), config('a')], [3, 1], tmp_path / 'runs')
    assert [run.name for run in plan] == [
        'b, seed 3', 'a, seed 3', 'b, seed 1', 'a, seed 1']  # yapf: disable
    assert plan[0].work_dir == tmp_path / 'runs' / 'b' / 'seed_3'


def test_command_line_of_a_run(config: Callable, tmp_path: Path) -> None:
    weights = tmp_path / 'weights.pth'
    weights.write_bytes(b'')
    path = config(
        'a',
        model__backbone__backbone__init_cfg=dict(
            type='Pretrained', checkpoint='old'))
    run, = plan_runs([path], [2], tmp_path / 'runs', ['train_cfg.max_iters=1'],
                     str(weights))
    assert run.arguments == (path, '--work-dir',
                             str(tmp_path / 'runs' / 'a' / 'seed_2'),
                             '--resume', '--pretrained', str(weights),
                             '--cfg-options', 'train_cfg.max_iters=1',
                             'randomness.seed=2')
    assert run.settings['train_cfg']['max_iters'] == 1
    assert run.settings['randomness']['seed'] == 2
    assert str(weights) in json.dumps(run.settings)


def test_experts_of_another_config(config: Callable, tmp_path: Path) -> None:
    source = '{work_dir}/mile/seed_{seed}'
    plan = plan_runs(
        [config('gate', train_cfg__experts_from=source),
         config('mile')], [0, 1], tmp_path / 'runs')
    expected = tmp_path / 'runs' / 'mile' / 'seed_1'
    assert plan[2].needs == plan[3].work_dir == expected
    assert option(plan[2], 'train_cfg.experts_from').endswith(str(expected))
    assert plan[2].settings['train_cfg']['experts_from'] == str(expected)
    assert plan[3].needs is None


def test_experts_of_no_run_are_refused(config: Callable,
                                       tmp_path: Path) -> None:
    path = config('gate', train_cfg__experts_from='{work_dir}/mile')
    with pytest.raises(ValueError, match='name the config that trains them'):
        plan_runs([path], [0], tmp_path / 'runs')
    write_run(tmp_path / 'runs' / 'mile')
    run, = plan_runs([path], [0], tmp_path / 'runs')
    assert run.needs == tmp_path / 'runs' / 'mile'


@pytest.mark.parametrize('template', ['{seeds}', '{0}', '{'])
def test_unknown_placeholder_is_refused(config: Callable, tmp_path: Path,
                                        template: str) -> None:
    path = config('gate', train_cfg__experts_from=template)
    with pytest.raises(ValueError, match='gate.py: train_cfg.experts_from '):
        plan_runs([path], [0], tmp_path / 'runs')


def test_folder_that_options_cannot_say_is_refused(config: Callable,
                                                   tmp_path: Path) -> None:
    path = config('gate', train_cfg__experts_from='{work_dir}/mile')
    with pytest.raises(ValueError, match='choose another --work-dir'):
        plan_runs([path], [0], tmp_path / 'a,b')


def test_configs_of_one_method_name_are_refused(config: Callable,
                                                tmp_path: Path) -> None:
    paths = [config(name, train_cfg__method='MILE') for name in 'ab']
    with pytest.raises(
            ValueError, match="a.py and .*b.py both call .* 'MILE'"):
        plan_runs(paths, [0], tmp_path / 'runs')


def test_one_method_on_two_orders_is_no_conflict(config: Callable,
                                                 tmp_path: Path) -> None:
    paths = [
        config('a', train_cfg__method='MILE'),
        config(
            'b', train_cfg__method='MILE',
            train_cfg__order=['night', 'day'])]  # yapf: disable
    assert len(plan_runs(paths, [0], tmp_path / 'runs')) == 2


def test_configs_of_one_file_name_are_refused(config: Callable,
                                              tmp_path: Path) -> None:
    path = config('a')
    with pytest.raises(ValueError, match=r"configs .* \['a'\] twice"):
        plan_runs([path, path], [0], tmp_path / 'runs')


@pytest.mark.parametrize('seeds, message', [([0, 0], r'\[0\] twice'),
                                            ([], 'at least one, got none')])
def test_repeated_or_no_seeds_are_refused(config: Callable, tmp_path: Path,
                                          seeds: list, message: str) -> None:
    with pytest.raises(ValueError, match=f'--seeds must .*{message}'):
        plan_runs([config('a')], seeds, tmp_path / 'runs')


@pytest.mark.parametrize(
    'name',
    ['randomness.seed', 'work_dir', 'resume', 'train_cfg.experts_from'])
def test_setting_of_the_single_run_is_refused(config: Callable, tmp_path: Path,
                                              name: str) -> None:
    with pytest.raises(ValueError, match=f'{name}.* differ from run to run'):
        plan_runs([config('a')], [0], tmp_path / 'runs', [f'{name}=1'])


def test_malformed_option_is_refused(config: Callable, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"key=value, got \['max_iters'\]"):
        plan_runs([config('a')], [0], tmp_path / 'runs', ['max_iters'])


def test_config_without_a_stream_is_refused(tmp_path: Path) -> None:
    path = tmp_path / 'stock.py'
    path.write_text("train_cfg = dict(type='IterBasedTrainLoop')\n")
    with pytest.raises(ValueError, match='stock.py must have train_cfg.tasks'):
        plan_runs([str(path)], [0], tmp_path / 'runs')


def test_work_dir_of_other_settings_is_refused(config: Callable,
                                               tmp_path: Path) -> None:
    path = config('a')
    run, = plan_runs([path], [0], tmp_path / 'runs')
    write_json(run.work_dir / 'settings.json', run.settings)
    plan_runs([path], [0], tmp_path / 'runs')
    with pytest.raises(ValueError, match='train_cfg.max_iters: 6 -> 7'):
        plan_runs([path], [0], tmp_path / 'runs', ['train_cfg.max_iters=7'])
    plan_runs(
        [path], [0], tmp_path / 'runs',
        ['train_cfg.max_iters=7', 'train_cfg.changed_settings=train_cfg,'])


def test_settings_are_those_that_the_run_keeps(config: Callable,
                                               tmp_path: Path) -> None:
    path = config('a')
    run, = plan_runs([path], [5], tmp_path / 'runs')
    cfg = Config.fromfile(path)
    cfg.merge_from_dict({'randomness.seed': 5})
    assert run.settings == settings_of(cfg, 5)


def test_results_of_a_finished_run_only(config: Callable,
                                        tmp_path: Path) -> None:
    run, = plan_runs([config('a')], [0], tmp_path / 'runs')
    assert run.results is None
    write_run(run.work_dir, routed=((60, 20), (math.nan, math.nan)))
    assert run.results is None
    write_run(run.work_dir, tasks=('day', ), routed=((60, ), ))
    assert run.results is None
    write_run(run.work_dir)
    assert run.results is not None


def test_run_without_its_closing_figures_is_not_finished(
        config: Callable, tmp_path: Path) -> None:
    run, = plan_runs([config('a')], [0], tmp_path / 'runs')
    path = write_run(run.work_dir) / 'results.json'
    document = json.loads(path.read_text())
    document['cost']['macs'] = None
    path.write_text(json.dumps(document))
    assert run.results is None
