# SPDX-License-Identifier: Apache-2.0
"""Settings chosen among equally many tries of each method."""
from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pandas as pd
import pytest
from fabricated_runs import write_run
from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[2]
RATE = 'optim_wrapper.optimizer.lr'


def load_tool():
    spec = spec_from_file_location('tune_tool', ROOT / 'tools' / 'tune.py')
    module = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        # as Python does for a script
        patch.syspath_prepend(str(ROOT / 'tools'))
        spec.loader.exec_module(module)
    return module


tool = load_tool()


@pytest.fixture
def config(tmp_path, tiny_config, quick):
    """``config(name)``: writes a config, which a tuning file can name."""

    def dump(name):
        with quick():
            tiny_config(
                tmp_path / 'unused', ('day', 'night'),
                train_cfg__method=name).dump(tmp_path / f'{name}.py')
        return f'{name}.py'

    return dump


@pytest.fixture
def tuning(tmp_path):
    """``tuning(methods)``: path of a tuning file."""

    def dump(methods, share=0.5):
        path = tmp_path / 'tuning.py'
        path.write_text(f'selection_share = {share!r}\nmethods = {methods!r}')
        return path

    return dump


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """``planned(tuning, ...)``: the tries of a command line."""

    def plan(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', ['tune.py', *map(str, arguments)])
        return tool.plan_tries(tool.parse_args())

    return plan


# -- the plan ------------------------------------------------------------


def test_first_try_of_each_method_comes_before_a_second_one(
        config, tuning, planned):
    path = tuning({
        config('b'): [{}, {
            RATE: 0.5
        }],
        config('a'): [{
            'model.init_from': 'base',
            'model.gate.top_k': 2
        }, {}]
    })
    plan = planned(path, '--work-dir', 'runs', '--seeds', 1, 0,
                   '--cfg-options', 'train_cfg.max_iters=1')
    assert [each.run.name for each in plan[:4]] == [
        'b, seed 1, try 1', 'a, seed 1, try 1', 'b, seed 1, try 2',
        'a, seed 1, try 2'
    ]
    assert [each.seed for each in plan[4:]] == [0] * 4
    assert [each.options for each in plan[:4]] == [
        'as shipped', 'model.init_from=base model.gate.top_k=2', f'{RATE}=0.5',
        'as shipped'
    ]
    assert plan[2].config == 'b.py'
    assert plan[2].run.work_dir == Path('runs/try_2/b/seed_1')
    assert plan[2].run.arguments[-5:] == [
        '--cfg-options', 'train_cfg.max_iters=1',
        'train_cfg.selection_share=0.5', f'{RATE}=0.5', 'randomness.seed=1'
    ]


A = 'a.py'


@pytest.mark.parametrize('methods, share, message', [
    ({
        A: [{}, {
            RATE: 1.0
        }],
        'b.py': [{}]
    }, 0.5, r"the same number of tries, got .*'a.py': 2, 'b.py': 1"),
    ({
        A: [{}, {}]
    }, 0.5, 'has one try twice'),
    ({
        A: []
    }, 0.5, 'must be a list of dicts'),
    ({
        A: [RATE]
    }, 0.5, 'must be a list of dicts of config options'),
    ({}, 0.5, 'must have selection_share'),
    ([A], 0.5, 'must have selection_share'),
    ({
        A: [{}]
    }, None, 'must have selection_share'),
    ({
        A: [{}]
    }, 1.5, 'selection_share must lie above 0'),
    ({
        A: [{
            RATE: {
                'x': 1
            }
        }]
    }, 0.5, r"try 1 of a.py: optim.* is read from a command line as"),
    ({
        A: [{
            'randomness.seed': 1
        }]
    }, 0.5, 'differ from run to run'),
    ({
        A: [{
            'train_cfg.selection_share': 0.1
        }]
    }, 0.5, 'differ from run to run'),
])
def test_tuning_that_would_be_unfair_or_unclear_is_refused(
        config, tuning, planned, methods, share, message):
    config('a')
    with pytest.raises(ValueError, match=message):
        planned(tuning(methods, share))


def test_setting_that_is_tuned_is_not_given_for_all(config, tuning, planned):
    path = tuning({config('a'): [{}, {RATE: 0.5}]})
    with pytest.raises(ValueError, match=r'lr=1.* differ from run to run'):
        planned(path, '--cfg-options', f'{RATE}=1')


# -- the log -------------------------------------------------------------


@pytest.fixture
def plan(config, tuning, planned):
    """Three tries of two methods with two seeds; what ran is fabricated."""
    tries = [{}, {RATE: 0.5}, {RATE: 2.0}]
    plan = planned(
        tuning({
            config('a'): tries,
            config('b'): tries
        }), '--seeds', 0, 1)
    final = {
        # the third try of a has one seed only, b's tries are equal
        ('a', 1): [(40, 50), (50, 40)],
        ('a', 2): [(60, 50), (44, 50)],
        ('a', 3): [(90, 90)],
        ('b', 1): [(30, 50), (30, 50)],
        ('b', 2): [(50, 30), (50, 30)],
    }
    for each in plan:
        scores = final.get((each.run.method, each.number), [])
        if each.seed < len(scores):
            write_run(
                each.run.work_dir,
                each.run.method,
                each.seed,
                routed=((60, 20), scores[each.seed]))
    return plan


def test_log_has_a_line_per_finished_run_and_marks_the_best(plan, tmp_path):
    out = tmp_path / 'log.csv'
    assert tool.write(plan, out) == [out]
    log = pd.read_csv(out, keep_default_na=False)
    assert list(log) == [
        'method', 'config', 'try', 'options', 'seed', 'average',
        'just learned', 'day', 'night', 'iterations', 'selection share',
        'commit', 'seconds', 'best'
    ]
    assert len(log) == 9
    best = log[log['best'] == 'yes']
    # (55 + 47) / 2 = 51 beats 45; of equal tries the first
    assert best[['method', 'try', 'seed']].values.tolist() == [['a', 2, 0],
                                                               ['a', 2, 1],
                                                               ['b', 1, 0],
                                                               ['b', 1, 1]]
    line = best.iloc[0]
    # just learned: 60 after the first task, 50 after the second
    assert (line['average'], line['just learned'], line['day'],
            line['night']) == (55, 55, 60, 50)
    assert (line['iterations'], line['commit'], line['seconds']) == (8, 'abc',
                                                                     40)


def test_best_tries_stand_beside_the_shipped_ones(plan):
    table = tool.best_of(plan)
    assert table.values.tolist() == [[
        'a', '2 of 3', f'2: {RATE}=0.5', '51.0', '55.0', '45.0'
    ], ['b', '2 of 3', '1: as shipped', '40.0', '55.0', '40.0']]


def test_nothing_is_written_before_a_run_is_finished(config, tuning, planned,
                                                     tmp_path):
    plan = planned(tuning({config('a'): [{}]}))
    assert tool.write(plan, tmp_path / 'log.csv') == []
    assert not (tmp_path / 'log.csv').exists()


# -- the command ---------------------------------------------------------


@pytest.mark.integration
def test_try_is_run_once_and_logged(config, tuning, run_tool, capfd, tmp_path):
    path = tuning({config('a'): [{RATE: 0.001}]})
    out = tmp_path / 'log.csv'
    arguments = [
        'tune.py', path, '--work-dir', tmp_path / 'runs', '--out', out,
        '--cfg-options', 'train_cfg.max_iters=1'
    ]
    with pytest.raises(SystemExit) as ended:
        run_tool(*arguments)
    assert ended.value.code == 0
    assert f'1 of 1 | 1: {RATE}=0.001 |' in capfd.readouterr().out
    line, = pd.read_csv(out).to_dict('records')
    assert line['method'] == 'a' and line['selection share'] == 0.5
    assert line['iterations'] == 1 and line['best'] == 'yes'
    before = out.read_bytes()
    with pytest.raises(SystemExit):
        run_tool(*arguments)
    assert '1 of 1 runs are finished already' in capfd.readouterr().out
    assert out.read_bytes() == before


# -- the files -----------------------------------------------------------


@pytest.mark.parametrize(
    'path', (ROOT / 'configs' / 'tuning').glob('*.py'), ids=lambda p: p.stem)
def test_tuning_file_tries_the_shipped_config_first(path):
    cfg = tool.read_tuning(path)
    for name, tries in cfg.methods.items():
        shipped = Config.fromfile(path.parent / name)
        assert len(tries) == 4 and tries[0] == {}
        for each in tries[1:]:
            changed = Config.fromfile(path.parent / name)
            changed.merge_from_dict(
                tool.parse_options(tool.as_options(each, name)))
            assert changed.to_dict() != shipped.to_dict()
