# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Callable, Dict

import numpy as np
import pytest
from matplotlib.axes import Axes

from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.visualization.class_iou import draw_class_iou, figure_class_iou


def small_results(oracle: bool = True) -> StreamResults:
    """Two label spaces that share the sky."""
    results = StreamResults.new('city', 'MILE', 0, ['day', 'farm', 'fog'])
    results.set_class_iou('routed', 'day', dict(road=80, sky=60))
    results.set_class_iou('routed', 'farm', dict(sky=np.nan, weed=30))
    if oracle:
        results.set_class_iou('oracle', 'day', dict(road=82.5, sky=60))
        results.set_class_iou('oracle', 'farm', dict(sky=np.nan, weed=29))
    return results


def written(axes: Axes) -> Dict[tuple, str]:
    return {t.get_position(): t.get_text() for t in axes.texts if t.get_text()}


def test_rows_are_classes_and_columns_are_tasks() -> None:
    axes = figure_class_iou(small_results()).axes[0]

    assert [t.get_text() for t in axes.get_xticklabels()] == ['day', 'farm']
    assert [t.get_text()
            for t in axes.get_yticklabels()] == ['road', 'sky', 'weed']
    assert written(axes) == {(0, 0): '80', (0, 1): '60', (1, 2): '30'}


def test_points_that_routing_cost_are_written_beside() -> None:
    axes = figure_class_iou(small_results()).axes[1]

    assert axes.get_title() == 'Lost to routing'
    assert written(axes) == {(0, 0): '2.5', (1, 2): '-1.0'}


def test_colours_of_the_loss_are_centred_on_none() -> None:
    low, high = figure_class_iou(small_results()).axes[1].images[0].get_clim()

    assert low == -high == -5


def test_methods_without_an_oracle_have_one_panel() -> None:
    figure = figure_class_iou(small_results(oracle=False))

    assert len(figure.axes) == 2  # the panel and its colour bar


@pytest.mark.parametrize('size', [1, 2, 3, 5, 12])
def test_nothing_overlaps(make_results: Callable, size: int,
                          texts_that_collide: Callable) -> None:
    assert not texts_that_collide(figure_class_iou(make_results(size)))


def test_few_classes_leave_room_for_the_bars(
        texts_that_collide: Callable) -> None:
    assert not texts_that_collide(figure_class_iou(small_results()))


def test_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (
        draw_class_iou(small_results(), tmp_path / name).read_bytes()
        for name in ('a.png', 'b.png'))

    assert first == second


def test_run_without_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match='class_iou.routed is empty'):
        figure_class_iou(StreamResults.new('s', 'm', 0, ['a']))
