# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
from fabricated_runs import three_methods, write_run

from mmseg_mile.evaluation.leaderboard import Leaderboard, read_leaderboard
from mmseg_mile.evaluation.leaderboard_tables import (markdown, methods_csv,
                                                      runs_csv, tables_of,
                                                      write_tables)


@pytest.fixture
def leaderboard(tmp_path: Path) -> Leaderboard:
    return read_leaderboard([three_methods(tmp_path)])


def test_scores_table(leaderboard: Leaderboard) -> None:
    table = tables_of(leaderboard.boards[0])[0]
    assert table.headings == ('method', 'rank', 'average', 'just learned',
                              'forgetting', 'Delta_m %', 'gate %',
                              'oracle gap', 'seeds', 'gets')
    # MILE: averages 50 and 54; just learned (60 + 40) / 2 and (60 + 48) / 2
    assert table.rows[0] == ('MILE', '1', '52.0 ± 2.8', '52.0 ± 2.8',
                             '0.0 ± 0.0', '4.0 ± 5.7', '100.0 ± 0.0',
                             '0.0 ± 0.0', '2', '')
    assert table.rows[1][:2] == ('one model per task', '-')
    assert table.rows[1][-2:] == ('2', 'task label')
    assert table.rows[2][2] == '40.0 ± -'
    assert [table.headings[i] for i in table.words] == ['method', 'gets']


def test_one_seed_everywhere_needs_no_deviation(tmp_path: Path) -> None:
    write_run(tmp_path / 'run', routed=((60, 20), (50, 40)))
    scores, tasks = tables_of(read_leaderboard([tmp_path]).boards[0])[:2]
    assert scores.rows[0][:3] == ('MILE', '1', '45.0')
    assert tasks.rows[0] == ('MILE', '50.0', '40.0')


def test_table_of_tasks(leaderboard: Leaderboard) -> None:
    table = tables_of(leaderboard.boards[0])[1]
    assert table.headings == ('method', 'day', 'night')
    assert table.rows[0] == ('MILE', '60.0 ± 0.0', '44.0 ± 5.7')


def test_table_of_costs(leaderboard: Leaderboard) -> None:
    table = tables_of(leaderboard.boards[0])[3]
    # NetScore of 50 and 54 %, 1.2 M values, 1 GMAC: 67.2 and 68.5
    assert table.rows[0] == ('MILE', '1.20', '0.200', '4.8', '0.80', '20',
                             '1.00', '67.8')


def test_column_without_a_figure_is_left_out(leaderboard: Leaderboard) -> None:
    table = tables_of(leaderboard.boards[0])[2]
    assert 'mismatch drop' not in table.headings
    assert 'harmonic mean' in table.headings


def test_markdown_has_a_row_per_method(leaderboard: Leaderboard) -> None:
    lines = markdown(leaderboard).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith('| '))
    cells = [[cell.strip() for cell in line.strip('|').split('|')]
             for line in lines[start:start + 5]]
    assert cells[0][:3] == ['method', 'rank', 'average']
    assert set(cells[1][2]) == {'-', ':'}
    assert [row[0] for row in cells[2:]] == [
        'MILE', 'one model per task', 'fine-tuning']  # yapf: disable


def test_task_may_be_called_like_a_column(tmp_path: Path) -> None:
    write_run(tmp_path / 'run', tasks=('method', 'rank'))
    assert 'method → rank' in markdown(read_leaderboard([tmp_path]))


def test_pipe_in_a_name_does_not_break_the_table(tmp_path: Path) -> None:
    write_run(tmp_path / 'run', 'A|B')
    assert '| A\\|B ' in markdown(read_leaderboard([tmp_path]))


def test_what_was_left_out_is_listed(tmp_path: Path) -> None:
    write_run(tmp_path / 'run', routed=((60, 20), (math.nan, math.nan)))
    text = markdown(read_leaderboard([tmp_path]))
    assert 'No run is finished.' in text
    assert '- `run`: MILE, seed 0, has finished 1 of 2 tasks' in text


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_csv_of_methods_has_full_precision(leaderboard: Leaderboard) -> None:
    mile, single, fine_tuning = read(methods_csv(leaderboard))
    assert mile['average_miou_sd'] == repr(8**0.5)
    assert mile['miou_night_mean'] == '44.0'
    assert mile['seeds'] == '0 1'
    assert single['task_label_at_test'] == 'True'
    assert fine_tuning['average_miou_sd'] == ''
    assert fine_tuning['rank'] == '2'


def test_csv_of_runs_has_a_line_per_run(leaderboard: Leaderboard) -> None:
    lines = read(runs_csv(leaderboard))
    assert [(line['run'], line['seed'], line['average_miou'])
            for line in lines] == [('mile/seed_0', '0', '50.0'),
                                   ('mile/seed_1', '1', '54.0'),
                                   ('single/seed_0', '0', '50.0'),
                                   ('single/seed_1', '1', '50.0'),
                                   ('fine_tune/seed_0', '0', '40.0')]


def test_csv_of_streams_with_other_tasks(tmp_path: Path) -> None:
    write_run(tmp_path / 'a', stream='a', tasks=('x', 'y'))
    write_run(tmp_path / 'b', stream='b', tasks=('x', 'z'))
    first, second = read(methods_csv(read_leaderboard([tmp_path])))
    assert (first['miou_y_mean'], first['miou_z_mean']) == ('40.0', '')
    assert (second['miou_y_mean'], second['miou_z_mean']) == ('', '40.0')


def test_no_run_gives_empty_files(tmp_path: Path) -> None:
    (tmp_path / 'empty').mkdir()
    paths = write_tables(
        read_leaderboard([tmp_path / 'empty']), tmp_path / 'out')
    assert [path.name for path in paths] == [
        'leaderboard.md', 'leaderboard.csv', 'runs.csv']  # yapf: disable
