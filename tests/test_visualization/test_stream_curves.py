# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Callable, Dict, List

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.visualization.stream_curves import (draw_stream_curves,
                                                    figure_stream_curves,
                                                    seen_means, spread)


def lines(figure: Figure) -> List[Line2D]:
    """Without those that lead to a name."""
    return [
        line for line in figure.axes[0].lines
        if line.get_linewidth() > 1 or line.get_alpha() is None
    ]


def small_results(oracle: float = np.nan) -> StreamResults:
    results = StreamResults.new('city', 'MILE', 0, ['day', 'dusk', 'fog'])
    results.miou['routed'][:2] = [[60, 20, 10], [50, 70, 12]]
    results.miou['oracle'][:2] = [[60, np.nan, np.nan], [oracle, 70, np.nan]]
    return results


def test_lines_begin_when_their_task_is_learned() -> None:
    routed = {
        tuple(line.get_xdata()): line.get_ydata().tolist()
        for line in lines(figure_stream_curves(small_results()))
        if line.get_color() != 'black'
    }

    assert routed == {(0, 1): [60, 50], (1, ): [70]}


def test_mean_is_over_the_tasks_learned_so_far() -> None:
    figure = figure_stream_curves(small_results())
    mean, = (line for line in lines(figure) if line.get_color() == 'black')

    assert mean.get_ydata().tolist() == [60, 60]
    assert seen_means(small_results(), 'routed').tolist() == [60, 60]


@pytest.mark.parametrize('oracle, count', [(np.nan, 0), (50.01, 0), (58, 2)])
def test_oracle_is_dashed_where_it_differs(oracle: float, count: int) -> None:
    figure = figure_stream_curves(small_results(oracle))

    dashed = [line for line in lines(figure) if line.get_linestyle() == '--']
    # the task itself, and the mean
    assert len(dashed) == count
    assert len(figure.legends) == bool(count)


def test_task_that_is_not_learned_has_no_line() -> None:
    names = [t.get_text() for t in figure_stream_curves(small_results())
             .axes[0].texts]  # yapf: disable

    assert sorted(names) == ['day', 'dusk', 'mean of seen']


def test_names_have_the_colours_of_their_lines() -> None:
    figure = figure_stream_curves(small_results())
    ends: Dict[float, str] = {
        line.get_ydata()[-1]: line.get_color()
        for line in lines(figure)
    }

    colours = {t.get_text(): t.get_color() for t in figure.axes[0].texts}
    assert colours['day'] == ends[50]
    assert colours['dusk'] == ends[70]


@pytest.mark.parametrize('size', [1, 2, 3, 5, 12, 20])
def test_nothing_overlaps(make_results: Callable, size: int,
                          texts_that_collide: Callable) -> None:
    assert not texts_that_collide(figure_stream_curves(make_results(size)))


def test_long_stream_names_the_mean_only() -> None:
    results = StreamResults.new('s', 'm', 0, [f't{i}' for i in range(60)])
    results.miou['routed'][:] = 50
    figure = figure_stream_curves(results)

    assert [t.get_text() for t in figure.axes[0].texts] == ['mean of seen']
    assert figure.get_figwidth() < 12


def test_noise_is_not_blown_up() -> None:
    results = small_results()
    results.miou['routed'][:2] = [[60, 20, 10], [60.2, 60.1, 12]]
    low, high = figure_stream_curves(results).axes[0].get_ylim()

    assert high - low >= 10


def test_same_results_give_the_same_bytes(make_results: Callable,
                                          tmp_path: Path) -> None:
    first, second = (
        draw_stream_curves(make_results(3), tmp_path / name).read_bytes()
        for name in ('a.png', 'b.png'))

    assert first == second


def test_run_without_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match='no finished row'):
        figure_stream_curves(StreamResults.new('s', 'm', 0, ['a']))


@pytest.mark.parametrize('wanted, places', [([1, 5], [1, 5]),
                                            ([5, 5], [4.5, 5.5]),
                                            ([0, 0, 9], [0.5, 1.5, 9]),
                                            ([10, 10], [8.5, 9.5]),
                                            ([4, 4, 5.2], [3.4, 4.4, 5.4])])
def test_places_are_spread_around_what_they_want(wanted: List[float],
                                                 places: List[float]) -> None:
    assert spread(wanted, 1, 10) == pytest.approx(places)
