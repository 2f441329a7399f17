# SPDX-License-Identifier: Apache-2.0
"""Work dirs that can be joined, and those that cannot."""
from __future__ import annotations

import math

import pytest
from fabricated_runs import write_run

from mmseg_mile.apis.left_out_run import read_finished


def test_runs_come_by_seed(tmp_path):
    for seed in (2, 0):
        write_run(tmp_path / f'{seed}', seed=seed)
    found = read_finished([tmp_path / '2', tmp_path / '0'])
    assert [run.results.seed for run in found] == [0, 2]
    assert found[0].work_dir == tmp_path / '0'


@pytest.mark.parametrize('change, message', [
    (dict(seed=0), r'the seeds \[0, 0\] are not different'),
    (dict(seed=1, method='EWC'), "is of method 'EWC', .* of 'MILE'"),
    (dict(seed=1, stream='sea'), "is of stream 'sea'"),
    (dict(seed=1, tasks=('night', 'day')), r"of tasks \['night', 'day'\]"),
])
def test_runs_that_differ_are_not_joined(tmp_path, change, message):
    write_run(tmp_path / 'a')
    write_run(tmp_path / 'b', **change)
    with pytest.raises(ValueError, match=message):
        read_finished([tmp_path / 'a', tmp_path / 'b'])


def test_folder_without_results_is_named(tmp_path):
    with pytest.raises(ValueError, match='nothing holds no results.json'):
        read_finished([tmp_path / 'nothing'])
    with pytest.raises(ValueError, match='name one or more work dirs'):
        read_finished([])


def test_single_task_leaves_nobody(tmp_path):
    write_run(
        tmp_path / 'a', routed=[[50]], tasks=('day', ), kept=[1], seconds=[1])
    with pytest.raises(ValueError, match='a has learned one task: no expert'):
        read_finished([tmp_path / 'a'])


def test_unfinished_run_is_refused(tmp_path):
    write_run(
        tmp_path / 'a',
        routed=((60, 20), (math.nan, math.nan)),
        seconds=(10, math.nan))
    with pytest.raises(ValueError, match='a has learned 1 of 2 tasks: finish'):
        read_finished([tmp_path / 'a'])
