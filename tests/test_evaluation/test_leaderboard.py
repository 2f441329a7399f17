# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import pytest
from fabricated_runs import settings_of_run, three_methods, write_run

from mmseg_mile.evaluation.leaderboard import (REFERENCE, Comparison,
                                               Leaderboard, Row, markdown,
                                               read_leaderboard, tables_of,
                                               write_shown_tables,
                                               write_tables)
from mmseg_mile.evaluation.routing_log import (RoutedImage, routing_log_path,
                                               write_routing_log)
from mmseg_mile.methods.baselines.single_task_segmentor import \
    SingleTaskSegmentor

NAN = math.nan

# -- reading -------------------------------------------------------------


def names(roots: list[Path]) -> list[str]:
    comparisons = read_leaderboard(roots).comparisons
    return [
        run.name for comparison in comparisons for row in comparison.rows
        for run in row.runs
    ]


def reasons(root: Path) -> dict[str, str]:
    """Why runs are in no table, by their names."""
    return dict(read_leaderboard([root]).left_out)


def test_runs_are_found_at_any_depth_and_count_once(tmp_path: Path) -> None:
    write_run(tmp_path / 'b' / 'seed_0', 'joint')
    run = write_run(tmp_path / 'a')
    assert names([tmp_path]) == ['a', 'b/seed_0']
    assert names([tmp_path, run, tmp_path / 'b']) == ['a', 'b/seed_0']
    assert names([run]) == ['a']


def test_parts_of_a_parallel_run_are_no_runs(tmp_path: Path) -> None:
    write_run(tmp_path / 'run' / 'workers' / '00_day')
    assert names([tmp_path]) == []
    write_run(tmp_path / 'run')
    assert names([tmp_path]) == ['run']


def test_run_that_is_not_finished_is_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / 'half', routed=((60, 20), (NAN, NAN)))
    (write_run(tmp_path / 'new') / 'results.json').unlink()
    assert reasons(tmp_path) == {
        'half': 'MILE, seed 0, has finished 1 of 2 tasks',
        'new': 'no task is finished yet'
    }


@pytest.mark.parametrize('name, content, reason', [
    ('results.json', '{', 'run/results.json is not valid JSON'),
    ('settings.json', '{', 'run/settings.json is not valid JSON'),
    ('settings.json', None, 'No such file or directory: .run/settings.json'),
    ('results.json', '{"schema": 2}', "'schema' must be 3, got 2"),
])
def test_run_that_cannot_be_read_is_left_out(tmp_path: Path, name: str,
                                             content: str | None,
                                             reason: str) -> None:
    path = write_run(tmp_path / 'run') / name
    path.unlink() if content is None else path.write_text(content)
    found = reasons(tmp_path)['run']
    assert re.search(reason, found) and str(tmp_path) not in found


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='no folder .*absent'):
        read_leaderboard([tmp_path, tmp_path / 'absent'])


# -- comparing -----------------------------------------------------------


@pytest.fixture
def leaderboard(tmp_path: Path) -> Leaderboard:
    return read_leaderboard([three_methods(tmp_path)])


@pytest.fixture
def comparison(leaderboard: Leaderboard) -> Comparison:
    assert leaderboard.left_out == []
    found, = leaderboard.comparisons
    return found


def row(comparison: Comparison, method: str) -> Row:
    found, = (row for row in comparison.rows if row.method == method)
    return found


def test_best_average_is_first_and_ranked_if_without_help(
        comparison: Comparison) -> None:
    assert [(r.method, r.figures['average_miou'].mean, r.rank, r.help)
            for r in comparison.rows] == [
                ('MILE', 52, 1, ''),
                ('one model per task', 50, None, 'task label'),
                ('fine-tuning', 40, 2, '')]  # yapf: disable


@pytest.mark.parametrize('label, images, text', [
    (False, 'buffer', 'old images (buffer)'),
    (False, 'all', 'all images at once'),
    (True, 'all', 'task label, all images at once')])  # yapf: disable
def test_help_is_said(tmp_path: Path, label: bool, images: str,
                      text: str) -> None:
    write_run(tmp_path / 'run', label=label, old_images=images)
    found = read_leaderboard([tmp_path]).comparisons[0].rows[0]
    assert (found.help, found.rank) == (text, None)


def test_seeds_become_mean_and_deviation(comparison: Comparison) -> None:
    mile = row(comparison, 'MILE')
    assert mile.seeds == [0, 1]
    # averages 50 and 54; night 40 and 48
    assert mile.figures['average_miou'] == (52, pytest.approx(8**0.5), 2)
    assert mile.figures['miou_night'].mean == 44
    one = row(comparison, 'fine-tuning')
    assert math.isnan(one.figures['average_miou'].deviation)


@pytest.mark.parametrize('method, expected', [
    # against 50 and 50: MILE (10 - 10) / 50 and (10 - 2) / 50, halved
    ('MILE', (0 + 8) / 2),
    ('one model per task', 0),
    # (-20 + 0) / 50, halved
    ('fine-tuning', -20)])  # yapf: disable
def test_delta_m_is_taken_against_one_model_per_task(comparison: Comparison,
                                                     method: str,
                                                     expected: float) -> None:
    delta_m = row(comparison, method).figures['delta_m']
    assert delta_m.mean == pytest.approx(expected)


def test_reference_is_the_method_of_that_name() -> None:
    assert REFERENCE == SingleTaskSegmentor.METHOD


@pytest.mark.parametrize('key, expected', [
    ('forgetting', 30),  # day: 60, then 30
    ('plasticity', 55),  # (60 + 50) / 2
    ('params_per_task', 0),
    ('kept_bytes', 4_000_000),
    ('seconds_per_task', 20),
    ('oracle_miou', 40),
    ('gate_accuracy', 100)])  # yapf: disable
def test_figures_of_a_run(comparison: Comparison, key: str,
                          expected: float) -> None:
    assert row(comparison, 'fine-tuning').figures[key].mean == expected


def test_streams_and_orders_have_tables_and_files_of_their_own(
        tmp_path: Path) -> None:
    write_run(tmp_path / 'a')
    write_run(tmp_path / 'b', stream='alley/1')
    write_run(tmp_path / 'c', stream='alley 1')
    write_run(tmp_path / 'd', tasks=('night', 'day'))
    found = read_leaderboard([tmp_path])
    assert found.titles == [
        'alley 1', 'alley/1', 'street: day → night', 'street: night → day'
    ]
    assert found.stems == [
        'alley-1', 'alley-1-2', 'street-day-night', 'street-night-day'
    ]


def test_seed_with_other_settings_is_left_out(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f'b{seed}', seed=seed)
    write_run(tmp_path / 'a2', seed=2, settings=settings_of_run(max_iters=9))
    assert reasons(tmp_path) == {
        'a2':
        "has other settings than the 2 of 'MILE' that are shown "
        '(train_cfg.method names a variant): train_cfg.max_iters 9 instead '
        'of 8'
    }


def test_seed_itself_and_where_experts_are_from_may_differ(
        tmp_path: Path) -> None:
    for seed in (0, 1):
        settings = settings_of_run()
        settings['randomness']['seed'] = seed
        settings['train_cfg']['experts_from'] = f'runs/seed_{seed}'
        write_run(tmp_path / f'{seed}', seed=seed, settings=settings)
    assert reasons(tmp_path) == {}


def test_same_seed_again_is_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / 'a', routed=((60, 20), (60, 40)))
    write_run(tmp_path / 'b', routed=((60, 20), (60, 60)))
    found = read_leaderboard([tmp_path])
    assert found.left_out == [('b',
                               "is 'MILE' with seed 0 once more, a is shown")]
    assert found.comparisons[0].rows[0].figures['average_miou'].mean == 50


def test_order_of_the_tasks_is_not_taken_for_their_settings(
        tmp_path: Path) -> None:
    settings = settings_of_run()
    settings['train_cfg']['tasks'].reverse()
    write_run(tmp_path / 'a', 'joint')
    write_run(tmp_path / 'b', settings=settings)
    assert reasons(tmp_path) == {}


def test_run_scored_on_other_images_is_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / 'b', 'fine-tuning')
    write_run(tmp_path / 'c', 'joint')
    write_run(tmp_path / 'a', settings=settings_of_run(split='test'))
    assert reasons(tmp_path)['a'].startswith(
        'is scored on other images than the 2 runs of this stream that are '
        'shown: train_cfg.tasks.day.val_dataset.split test instead of val')


def test_pipeline_of_a_method_is_its_own_affair(tmp_path: Path) -> None:
    write_run(tmp_path / 'a', 'joint')
    write_run(tmp_path / 'b', settings=settings_of_run(scale=2))
    assert reasons(tmp_path) == {}


def notes(root: Path) -> str:
    found, = read_leaderboard([root]).comparisons
    return '\n'.join(found.notes)


def test_what_differs_between_methods_is_noted(tmp_path: Path) -> None:
    for name in 'abcd':
        write_run(tmp_path / name, name)
    write_run(
        tmp_path / 'e',
        'e',
        seed=1,
        settings=settings_of_run(max_iters=16),
        commit='def',
        device='gpu')
    assert notes(tmp_path).splitlines() == [
        "No run of 'one model per task': Delta_m is not known.",
        'Not the same for all: seeds (0: 4 methods; 1: e).',
        'Not the same for all: train_cfg.max_iters (16: e; 8: 4 methods).',
        'Not the same for all: commit (abc: 4 methods; def: e).',
        'Not the same for all: device, so times do not compare '
        '(cpu: 4 methods; gpu: e).',
        "Not compared with 'a' image by image: b, c, d (b has no "
        'routing_log/night.jsonl).'
    ]


def test_few_methods_are_named_in_a_note(tmp_path: Path) -> None:
    assert notes(three_methods(tmp_path)).splitlines()[0] == (
        'Not the same for all: seeds (0: fine-tuning; 0, 1: MILE, one model '
        'per task).')


# -- differences ---------------------------------------------------------


def with_images(folder: Path, method: str, hits: list[int],
                **run: int) -> None:
    """A run whose images are hit at so many of ten pixels in both tasks."""
    work_dir = write_run(folder / f'{method}_{run.get("seed", 0)}', method,
                         **run)
    tasks = read_leaderboard([work_dir]).comparisons[0].tasks
    write_routing_log(
        routing_log_path(work_dir, tasks[-1]), [
            RoutedImage(
                after=tasks[-1],
                task=task,
                dataset='D',
                file=f'{index}.png',
                sequence=str(index),
                areas=dict(road=[count, 10, count])) for task in tasks
            for index, count in enumerate(hits)
        ])


def test_methods_are_compared_image_by_image(tmp_path: Path) -> None:
    with_images(tmp_path, 'best', [6, 7, 8, 9])
    with_images(tmp_path, 'best', [6, 7, 8, 9], seed=1)
    with_images(tmp_path, 'steady', [5, 6, 7, 8])
    with_images(tmp_path, 'steady', [4, 5, 6, 7], seed=1)
    with_images(tmp_path, 'erratic', [9, 9, 0, 0])
    found, = read_leaderboard([tmp_path], compare='best').comparisons
    table = tables_of(found)[1]
    assert table.title == 'Difference to best, points'
    lines = {line[0]: line[1:] for line in table.frame.to_numpy().tolist()}
    assert lines['steady'] == ['-15.0', '-15.0 to -15.0', '-10.0 -20.0', 'yes']
    assert lines['erratic'][0::2] == ['-30.0', '-30.0']
    low, high = map(float, lines['erratic'][1].split(' to '))
    assert low < -60 and high > 0 and lines['erratic'][3] == 'no'
    assert found.compared == 'best' and 'best' not in lines


def test_method_to_compare_with_must_be_there(tmp_path: Path) -> None:
    with_images(tmp_path, 'a', [1])
    with_images(tmp_path, 'b', [2])
    found, = read_leaderboard([tmp_path], compare='c').comparisons
    assert f"No run of 'c': {found.compared!r} is compared." in found.notes


# -- tables --------------------------------------------------------------


def lines_of(comparison: Comparison, index: int) -> list[list[str]]:
    frame = tables_of(comparison)[index].frame
    return [list(frame.columns), *frame.to_numpy().tolist()]


def test_scores_are_shown_with_their_deviation(comparison: Comparison) -> None:
    headings, mile, single, fine_tuning = lines_of(comparison, 0)
    assert headings == [
        'method', 'rank', 'average', 'just learned', 'forgetting', 'Delta_m %',
        'gate %', 'oracle gap', 'seeds', 'gets'
    ]
    # averages 50 and 54; just learned (60 + 40) / 2 and (60 + 48) / 2
    assert mile == [
        'MILE', '1', '52.0 ± 2.8', '52.0 ± 2.8', '0.0 ± 0.0', '4.0 ± 5.7',
        '100.0 ± 0.0', '0.0 ± 0.0', '2', ''
    ]
    assert single[1] == '-' and single[-2:] == ['2', 'task label']
    assert fine_tuning[2] == '40.0 ± -'


def test_one_seed_everywhere_needs_no_deviation(tmp_path: Path) -> None:
    write_run(tmp_path / 'run')
    comparison, = read_leaderboard([tmp_path]).comparisons
    assert lines_of(comparison, 0)[1][:3] == ['MILE', '1', '45.0']
    assert lines_of(comparison, 1) == [['method', 'day', 'night'],
                                       ['MILE', '50.0', '40.0']]


def test_costs_and_columns_without_a_figure(comparison: Comparison) -> None:
    # NetScore of 50 and 54 %, 1.2 M values, 1 GMAC: 67.2 and 68.5
    assert lines_of(comparison, 3)[1] == [
        'MILE', '1.20', '0.200', '4.8', '0.80', '20', '1.00', '67.8'
    ]
    more = lines_of(comparison, 2)[0]
    assert 'harmonic mean' in more and 'mismatch drop' not in more


def test_markdown_has_tables_notes_and_meanings(tmp_path: Path) -> None:
    write_run(tmp_path / 'run', 'A|B', tasks=('method', 'rank'))
    write_run(tmp_path / 'half', routed=((60, 20), (NAN, NAN)))
    lines = markdown(read_leaderboard([tmp_path])).splitlines()
    start = lines.index('**mIoU of each task at the end, %**')
    assert [cell.strip() for cell in lines[start + 2].split('|')
            ] == ['', 'method', 'method', 'rank', '']
    assert lines[start + 4].startswith('| A\\|B ')
    for line in ("- No run of 'one model per task': Delta_m is not known.",
                 '- `half`: MILE, seed 0, has finished 1 of 2 tasks',
                 '- average: %, mean over tasks at the end'):
        assert line in lines


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_csv_files_have_full_precision(leaderboard: Leaderboard,
                                       tmp_path: Path) -> None:
    write_tables(leaderboard, tmp_path / 'out')
    mile, single, fine_tuning = read(tmp_path / 'out' / 'leaderboard.csv')
    assert mile['average_miou_sd'] == repr(8**0.5)
    assert (mile['miou_night_mean'], mile['seeds']) == ('44.0', '0 1')
    assert single['task_label_at_test'] == 'True'
    assert (fine_tuning['average_miou_sd'], fine_tuning['rank']) == ('', '2')
    runs = read(tmp_path / 'out' / 'runs.csv')
    assert [(r['run'], r['seed'], r['average_miou']) for r in runs] == [
        ('mile/seed_0', '0', '50.0'), ('mile/seed_1', '1', '54.0'),
        ('single/seed_0', '0', '50.0'), ('single/seed_1', '1', '50.0'),
        ('fine_tune/seed_0', '0', '40.0')]  # yapf: disable


def test_each_table_is_written_as_it_is_shown(leaderboard: Leaderboard,
                                              tmp_path: Path) -> None:
    paths = write_shown_tables(leaderboard, tmp_path)
    assert [path.name for path in paths] == [
        'street_scores.csv', 'street_tasks.csv', 'street_more_scores.csv',
        'street_costs.csv'
    ]
    assert read(paths[1])[0] == dict(
        method='MILE', day='60.0 ± 0.0', night='44.0 ± 5.7')


def test_csv_of_streams_with_other_tasks(tmp_path: Path) -> None:
    write_run(tmp_path / 'a', stream='a', tasks=('x', 'y'))
    write_run(tmp_path / 'b', stream='b', tasks=('x', 'z'))
    write_tables(read_leaderboard([tmp_path]), tmp_path / 'out')
    first, second = read(tmp_path / 'out' / 'leaderboard.csv')
    assert (first['miou_y_mean'], first['miou_z_mean']) == ('40.0', '')
    assert (second['miou_y_mean'], second['miou_z_mean']) == ('', '40.0')


def test_no_run_gives_empty_files(tmp_path: Path) -> None:
    (tmp_path / 'empty').mkdir()
    found = read_leaderboard([tmp_path / 'empty'])
    paths = write_tables(found, tmp_path / 'out')
    assert [path.name for path in paths
            ] == ['leaderboard.md', 'leaderboard.csv', 'runs.csv']
    assert 'No run is finished.' in markdown(found)
