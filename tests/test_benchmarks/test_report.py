# SPDX-License-Identifier: Apache-2.0
"""Results as files."""
from __future__ import annotations

import json

from mmseg_mile.benchmarks import Report
from mmseg_mile.benchmarks.ratio_plot import Bar
from mmseg_mile.benchmarks.report import goal_of


def make_report(settings, failures):
    return Report('predict', 'What was measured', settings,
                  dict(model='model', ratio='ratio'),
                  [dict(model='net', ratio=0.5, seconds=[1.0])],
                  [Bar('net', 'ours', 0.5)], 'time', failures)


def test_three_files_are_written(settings, tmp_path):
    paths = make_report(settings, []).write(tmp_path / 'deep')
    assert [p.name for p in paths] == [
        'benchmark_predict.json', 'benchmark_predict.md',
        'benchmark_predict.png'
    ]
    assert paths[2].read_bytes().startswith(b'\x89PNG')


def test_record_says_how_it_was_measured(settings, tmp_path):
    path, *_ = make_report(settings, []).write(tmp_path)
    record = json.loads(path.read_text())
    assert record['settings']['rounds'] == settings.rounds
    assert record['environment']['versions']['torch']
    assert record['rows'][0]['seconds'] == [1.0]


def test_table_is_markdown(settings):
    lines = make_report(settings, []).table().splitlines()
    assert [c.strip()
            for c in lines[2].strip('|').split('|')] == ['net', '0.500']


def test_failures_are_loud(settings):
    assert 'FAILED: net is wrong' in make_report(settings,
                                                 ['net is wrong']).markdown()


def test_goal_belongs_to_the_longest_name():
    goals = dict(segformer=1.0, segformer_b0=0.7)
    assert goal_of(goals, 'configs/segformer_b0_domain_inc.py') == 0.7
    assert goal_of(goals, 'configs/segformer_b5.py') == 1.0
    assert goal_of(goals, 'configs/swin.py') is None
