# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from fabricated_runs import three_methods, write_run
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmseg_mile.evaluation.leaderboard import read_leaderboard
from mmseg_mile.visualization.leaderboard_chart import leaderboard_chart


@pytest.fixture
def axes(tmp_path: Path) -> Axes:
    return chart(three_methods(tmp_path)).axes[0]


def chart(root: Path) -> Figure:
    return leaderboard_chart(read_leaderboard([root]).comparisons[0])


def test_best_method_is_on_top(axes: Axes) -> None:
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ['MILE', 'one model per task', 'fine-tuning']
    assert axes.yaxis_inverted()


def test_dots_are_means_and_bars_their_deviation(axes: Axes) -> None:
    dots = [bar.lines[0].get_xydata().tolist() for bar in axes.containers]
    assert dots == [[[52, 0]], [[50, 1]], [[40, 2]]]
    left, right = axes.containers[0].lines[2][0].get_segments()[0][:, 0]
    assert (left, right) == pytest.approx((52 - 8**0.5, 52 + 8**0.5))
    # one seed has no bar
    assert not axes.containers[2].lines[2]


def test_line_leads_from_just_learned_to_the_end(axes: Axes) -> None:
    lines = [line.get_xdata().tolist() for line in axes.lines]
    # fine-tuning: (60 + 50) / 2, then 40
    assert [55, 40] in lines


def test_methods_with_help_have_another_colour(axes: Axes) -> None:
    colours = [label.get_color() for label in axes.get_yticklabels()]
    assert colours[0] == colours[2] != colours[1]


def test_every_seed_is_marked(axes: Axes) -> None:
    marks = [
        list(line.get_xdata()) for line in axes.lines
        if line.get_marker() == '|' and line.get_markersize() == 7
    ]
    assert marks == [[50, 54], [50, 50], [40]]


def test_many_methods_with_long_names_fit(tmp_path: Path) -> None:
    for index in range(20):
        write_run(tmp_path / str(index), f'method number {index} ' + 'x' * 40)
    figure = chart(tmp_path)
    figure.draw_without_rendering()
    labels = figure.axes[0].get_yticklabels()
    boxes = [label.get_window_extent() for label in labels]
    assert min(box.x0 for box in boxes) >= 0
    assert all(a.y0 >= b.y1 for a, b in zip(boxes, boxes[1:]))


def test_names_as_long_as_methods_have_are_not_cut(tmp_path: Path) -> None:
    name = 'Expert Gate over the experts of MILE'
    write_run(tmp_path / 'long', name)
    figure = chart(tmp_path)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [name]
    # the dots have the same room as beside a short name
    write_run(tmp_path / 'short' / 'run', 'a')
    short = chart(tmp_path / 'short')
    assert figure.get_figwidth() > short.get_figwidth()
