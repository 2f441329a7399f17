# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from fabricated_runs import write_run

from mmseg_mile.evaluation.finished_runs import flatten, read_runs


def names(roots: list[Path]) -> list[str]:
    return [run.name for run in read_runs(roots)[0]]


def reasons(root: Path) -> dict[str, str]:
    return dict(read_runs([root])[1])


def test_runs_are_found_at_any_depth_and_named_from_the_root(
        tmp_path: Path) -> None:
    write_run(tmp_path / 'b' / 'seed_0')
    write_run(tmp_path / 'a')
    assert names([tmp_path]) == ['a', 'b/seed_0']


def test_work_dir_itself_can_be_given(tmp_path: Path) -> None:
    assert names([write_run(tmp_path / 'run')]) == ['run']


def test_run_in_two_of_the_folders_counts_once(tmp_path: Path) -> None:
    write_run(tmp_path / 'a' / 'run')
    write_run(tmp_path / 'b' / 'run')
    roots = [tmp_path, tmp_path / 'a', tmp_path / 'a' / 'run']
    assert names(roots) == ['a/run', 'b/run']


def test_parts_of_a_parallel_run_are_no_runs(tmp_path: Path) -> None:
    write_run(tmp_path / 'run' / 'workers' / '00_day')
    assert names([tmp_path]) == []
    write_run(tmp_path / 'run')
    assert names([tmp_path]) == ['run']


def test_unfinished_run_is_left_out_with_what_it_has(tmp_path: Path) -> None:
    write_run(tmp_path / 'run', routed=((60, 20), (math.nan, math.nan)))
    assert reasons(tmp_path) == {
        'run': 'MILE, seed 0, has finished 1 of 2 tasks'
    }


def test_run_without_a_finished_task_is_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / 'run')
    (tmp_path / 'run' / 'results.json').unlink()
    assert reasons(tmp_path) == {'run': 'no task is finished yet'}


def test_run_of_another_schema_is_left_out(tmp_path: Path) -> None:
    path = write_run(tmp_path / 'run') / 'results.json'
    document = json.loads(path.read_text())
    document['schema'] = 1
    path.write_text(json.dumps(document))
    assert "'schema' must be 2, got 1" in reasons(tmp_path)['run']


@pytest.mark.parametrize('name', ['results.json', 'settings.json'])
def test_broken_file_is_named_without_the_path_of_the_machine(
        tmp_path: Path, name: str) -> None:
    (write_run(tmp_path / 'run') / name).write_text('{')
    reason = reasons(tmp_path)['run']
    assert reason.startswith(f'run/{name} is not valid JSON')
    assert str(tmp_path) not in reason


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='no folder .*absent'):
        read_runs([tmp_path, tmp_path / 'absent'])


def test_settings_go_by_dotted_name_and_tasks_by_their_own() -> None:
    settings = dict(
        a=dict(b=1, c=[1, 2]),
        tasks=[dict(name='x', n=3)],
        e=[dict(f=4)],
        g={})
    assert flatten(settings) == {
        'a.b': 1,
        'a.c': [1, 2],
        'tasks.x.name': 'x',
        'tasks.x.n': 3,
        'e.0.f': 4,
        'g': {}
    }


def test_run_without_settings_is_kept(tmp_path: Path) -> None:
    write_run(tmp_path / 'run', settings={})
    (run, ), _ = read_runs([tmp_path])
    assert run.settings is None
