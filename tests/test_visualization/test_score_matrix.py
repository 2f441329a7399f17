# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Callable, List

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.visualization.score_matrix import draw_score_matrix


def test_same_results_give_the_same_bytes(make_results: Callable,
                                          tmp_path: Path) -> None:
    results = make_results(3)

    first = draw_score_matrix(results, tmp_path / 'a.png').read_bytes()

    assert draw_score_matrix(results, tmp_path / 'b.png').read_bytes() == first
    results.set_miou('routed', 1, 0, 0)
    assert draw_score_matrix(results, tmp_path / 'c.png').read_bytes() != first


@pytest.mark.parametrize('size', [1, 2, 3, 5, 12, 24])
def test_nothing_overlaps(make_results: Callable, tmp_path: Path, size: int,
                          drawn: List[Figure],
                          texts_that_collide: Callable) -> None:
    if size > 12:
        results = StreamResults.new('s', 'm', 0,
                                    [f'domain {i}' for i in range(size)])
        results.miou['routed'][:] = 100
    else:
        results = make_results(size)
    draw_score_matrix(results, tmp_path / 'a.png')

    assert not texts_that_collide(drawn[0])


def test_both_panels_hold_their_numbers(make_results: Callable, tmp_path: Path,
                                        drawn: List[Figure]) -> None:
    results = make_results(3)
    draw_score_matrix(results, tmp_path / 'a.png')

    for axes, kind in zip(drawn[0].axes, ('routed', 'oracle')):
        matrix = results.miou[kind]
        assert [t.get_text() for t in axes.texts
                ] == [f'{v:.1f}' for v in matrix[~np.isnan(matrix)]]


def test_equal_scores_have_equal_colours(make_results: Callable,
                                         tmp_path: Path,
                                         drawn: List[Figure]) -> None:
    draw_score_matrix(make_results(3), tmp_path / 'a.png')

    routed, oracle = (axes.images[0] for axes in drawn[0].axes[:2])
    assert routed.get_clim() == oracle.get_clim()


def test_unmeasured_oracle_is_left_out(make_results: Callable, tmp_path: Path,
                                       drawn: List[Figure]) -> None:
    draw_score_matrix(make_results(3, oracle=False), tmp_path / 'a.png')

    assert [axes.get_title()
            for axes in drawn[0].axes] == ['Routed (no task label)', '']


def test_noise_is_not_blown_up(tmp_path: Path, drawn: List[Figure]) -> None:
    results = StreamResults.new('s', 'm', 0, ['a', 'b'])
    results.miou['routed'][:] = [[60, 60.2], [60.1, 60]]
    draw_score_matrix(results, tmp_path / 'a.png')

    low, high = drawn[0].axes[0].images[0].get_clim()
    assert high - low == pytest.approx(10)
    assert low < 60 < high


def test_colours_end_at_the_ends_of_the_scores(tmp_path: Path,
                                               drawn: List[Figure]) -> None:
    results = StreamResults.new('s', 'm', 0, ['a'])
    for value, limits in ((100, (90, 100)), (1, (0, 10))):
        results.set_miou('routed', 0, 0, value)
        draw_score_matrix(results, tmp_path / 'a.png')

        assert drawn[-1].axes[0].images[0].get_clim() == limits


def test_empty_run_can_be_drawn(tmp_path: Path) -> None:
    path = draw_score_matrix(
        StreamResults.new('s', 'm', 0, ['a', 'b']), tmp_path / 'a.png')

    assert cv2.imread(str(path)) is not None
