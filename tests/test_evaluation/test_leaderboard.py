# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from pathlib import Path

import pytest
from fabricated_runs import settings_of_run, three_methods, write_run

from mmseg_mile.evaluation.leaderboard import (REFERENCE, Standing,
                                               StreamBoard, read_leaderboard)
from mmseg_mile.methods.baselines.single_task_segmentor import \
    SingleTaskSegmentor


@pytest.fixture
def board(tmp_path: Path) -> StreamBoard:
    leaderboard = read_leaderboard([three_methods(tmp_path)])
    assert leaderboard.left_out == ()
    board, = leaderboard.boards
    return board


def standing(board: StreamBoard, method: str) -> Standing:
    found, = (s for s in board.standings if s.method == method)
    return found


def left_out(root: Path) -> dict[str, str]:
    return dict(read_leaderboard([root]).left_out)


def test_best_average_stands_first(board: StreamBoard) -> None:
    assert [(s.method, s.figures['average_miou'].mean)
            for s in board.standings] == [('MILE', 52),
                                          ('one model per task', 50),
                                          ('fine-tuning', 40)]


def test_ranked_are_methods_without_help(board: StreamBoard) -> None:
    assert [(s.rank, s.help)
            for s in board.standings] == [(1, ''), (None, 'task label'),
                                          (2, '')]


@pytest.mark.parametrize('label, images, text', [
    (False, 'buffer', 'old images (buffer)'),
    (False, 'all', 'all images at once'),
    (True, 'all', 'task label, all images at once')])  # yapf: disable
def test_help_is_said(tmp_path: Path, label: bool, images: str,
                      text: str) -> None:
    write_run(tmp_path / 'run', label=label, old_images=images)
    (board, ), _ = vars(read_leaderboard([tmp_path])).values()
    assert board.standings[0].help == text
    assert board.standings[0].rank is None


def test_seeds_become_mean_and_deviation(board: StreamBoard) -> None:
    mile = standing(board, 'MILE')
    assert mile.seeds == (0, 1)
    # averages 50 and 54; night 40 and 48
    assert mile.figures['average_miou'] == (52, pytest.approx(8**0.5), 2)
    assert [task.mean for task in mile.tasks] == [60, 44]


def test_one_seed_has_no_deviation(board: StreamBoard) -> None:
    assert math.isnan(
        standing(board, 'fine-tuning').figures['average_miou'].deviation)


@pytest.mark.parametrize('method, expected', [
    # against 50 and 50: MILE (10 - 10) / 50 and (10 - 2) / 50, halved
    ('MILE', (0 + 8) / 2),
    ('one model per task', 0),
    # (-20 + 0) / 50, halved
    ('fine-tuning', -20)])  # yapf: disable
def test_delta_m_is_taken_against_one_model_per_task(board: StreamBoard,
                                                     method: str,
                                                     expected: float) -> None:
    assert standing(board,
                    method).figures['delta_m'].mean == pytest.approx(expected)


def test_reference_is_the_method_of_that_name() -> None:
    assert REFERENCE == SingleTaskSegmentor.METHOD


def test_absent_reference_is_noted(tmp_path: Path) -> None:
    write_run(tmp_path / 'run')
    board, = read_leaderboard([tmp_path]).boards
    assert math.isnan(board.standings[0].figures['delta_m'].mean)
    assert board.notes == (
        "No run of 'one model per task': Delta_m is not known.", )


@pytest.mark.parametrize('key, expected', [
    ('forgetting', 30),  # day: 60, then 30
    ('plasticity', 55),  # (60 + 50) / 2
    ('params_per_task', 0),
    ('kept_bytes', 4_000_000),
    ('seconds_per_task', 20),
    ('oracle_miou', 40),
    ('gate_accuracy', 100)])  # yapf: disable
def test_figures_of_a_run(board: StreamBoard, key: str,
                          expected: float) -> None:
    assert standing(board, 'fine-tuning').figures[key].mean == expected


def test_streams_and_orders_have_tables_of_their_own(tmp_path: Path) -> None:
    write_run(tmp_path / 'a')
    write_run(tmp_path / 'b', stream='alley')
    write_run(tmp_path / 'c', tasks=('night', 'day'))
    boards = read_leaderboard([tmp_path]).boards
    assert [(b.stream, b.tasks) for b in boards] == [
        ('alley', ('day', 'night')), ('street', ('day', 'night')),
        ('street', ('night', 'day'))]  # yapf: disable


def test_seed_with_other_settings_is_left_out(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f'b{seed}', seed=seed)
    write_run(tmp_path / 'a2', seed=2, settings=settings_of_run(max_iters=9))
    assert left_out(tmp_path) == {
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
    assert left_out(tmp_path) == {}


def test_same_seed_again_is_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / 'a', routed=((60, 20), (60, 40)))
    write_run(tmp_path / 'b', routed=((60, 20), (60, 60)))
    leaderboard = read_leaderboard([tmp_path])
    assert dict(leaderboard.left_out) == {
        'b': "is 'MILE' with seed 0 once more, a is shown"
    }
    figures = leaderboard.boards[0].standings[0].figures
    assert figures['average_miou'].mean == 50


def test_run_scored_on_other_images_is_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / 'b', 'fine-tuning')
    write_run(tmp_path / 'c', 'joint')
    write_run(tmp_path / 'a', settings=settings_of_run(split='test'))
    assert left_out(tmp_path)['a'].startswith(
        'is scored on other images than the 2 runs of this stream that are '
        'shown: train_cfg.tasks.day.val_dataset.split test instead of val')


def test_pipeline_of_a_method_is_its_own_affair(tmp_path: Path) -> None:
    write_run(tmp_path / 'a', 'joint')
    write_run(tmp_path / 'b', settings=settings_of_run(scale=2))
    assert left_out(tmp_path) == {}


def notes(root: Path) -> str:
    board, = read_leaderboard([root]).boards
    return '\n'.join(board.notes)


def test_other_budget_is_noted(tmp_path: Path) -> None:
    write_run(tmp_path / 'a', 'joint', settings=settings_of_run(max_iters=16))
    write_run(tmp_path / 'b')
    assert ('Not the same for all: train_cfg.max_iters (16: joint; 8: MILE).'
            in notes(tmp_path))


def test_other_seeds_are_noted(tmp_path: Path) -> None:
    assert ('Not the same for all: seeds (0: fine-tuning; 0, 1: MILE, one '
            'model per task).' in notes(three_methods(tmp_path)))


def test_many_methods_in_agreement_are_not_listed(tmp_path: Path) -> None:
    for name in 'abcd':
        write_run(tmp_path / name, name)
    write_run(tmp_path / 'e', 'e', settings=settings_of_run(max_iters=16))
    assert 'max_iters (16: e; 8: 4 methods)' in notes(tmp_path)


def test_other_commit_and_device_are_noted(tmp_path: Path) -> None:
    write_run(tmp_path / 'a', seed=0, commit='abc', device='cpu')
    write_run(tmp_path / 'b', seed=1, commit='def', device='gpu')
    found = notes(tmp_path)
    assert 'commit (abc: MILE; def: MILE)' in found
    assert 'device, so times do not compare (cpu: MILE; gpu: MILE)' in found


def test_settings_that_were_not_kept_are_noted(tmp_path: Path) -> None:
    write_run(tmp_path / 'a', settings={})
    assert 'Not kept are the settings of MILE' in notes(tmp_path)


def test_equal_runs_need_no_note_but_the_reference(tmp_path: Path) -> None:
    write_run(tmp_path / 'a', seed=0)
    write_run(tmp_path / 'b', seed=1)
    assert notes(tmp_path).count('\n') == 0
