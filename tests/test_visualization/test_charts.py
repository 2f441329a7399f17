# SPDX-License-Identifier: Apache-2.0
"""Methods side by side as dots."""
from __future__ import annotations

from dataclasses import replace

import pytest
from fabricated_left_out import fabricated
from fabricated_runs import three_methods, write_run

from mmseg_mile.evaluation.leaderboard import read_leaderboard
from mmseg_mile.visualization.charts import (leaderboard_chart,
                                             leave_one_out_chart)


def chart(root):
    return leaderboard_chart(read_leaderboard([root]).boards[0])


@pytest.fixture
def axes(tmp_path):
    return chart(three_methods(tmp_path)).axes[0]


def labels(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def test_best_method_is_on_top(axes):
    assert labels(axes) == ['MILE', 'one model per task', 'fine-tuning']
    assert axes.yaxis_inverted()


def test_dots_are_means_and_bars_their_deviation(axes):
    dots = [bar.lines[0].get_xydata().tolist() for bar in axes.containers]
    assert dots == [[[52, 0]], [[50, 1]], [[40, 2]]]
    left, right = axes.containers[0].lines[2][0].get_segments()[0][:, 0]
    assert (left, right) == pytest.approx((52 - 8**0.5, 52 + 8**0.5))
    # one seed has no bar
    assert not axes.containers[2].lines[2]


def test_line_leads_from_just_learned_to_the_end(axes):
    lines = [line.get_xdata().tolist() for line in axes.lines]
    # fine-tuning: (60 + 50) / 2, then 40
    assert [55, 40] in lines


def test_methods_with_help_have_another_colour(axes):
    colours = [label.get_color() for label in axes.get_yticklabels()]
    assert colours[0] == colours[2] != colours[1]


def test_every_seed_is_marked(axes):
    marks = [
        list(line.get_xdata()) for line in axes.lines
        if line.get_marker() == '|' and line.get_markersize() == 5
    ]
    assert marks == [[50, 54], [50, 50], [40]]


def test_many_methods_with_long_names_fit(tmp_path):
    name = 'Expert Gate over the experts of MILE'
    for index in range(20):
        write_run(tmp_path / str(index), f'{name} {index:02d} ' + 'x' * 40)
    write_run(tmp_path / 'last', name, routed=((60, 20), (50, 20)))
    figure = chart(tmp_path)
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in figure.axes[0].get_yticklabels()]
    assert min(box.x0 for box in boxes) >= 0
    assert all(a.y0 >= b.y1 for a, b in zip(boxes, boxes[1:]))
    # names as long as methods have are not cut
    assert labels(figure.axes[0])[-1] == name


# -- leave one out --------------------------------------------------------

MIOUS = {
    ('none', 'oracle'): (60, 60, 60),
    ('own', 'nearest'): (30, 60, 60),
    ('family', 'nearest'): (20, 40, 60),
}


@pytest.fixture
def figure():
    return leave_one_out_chart(fabricated(MIOUS, (0, 1)))


def test_a_panel_per_kind_of_removal(figure):
    assert [axes.get_title() for axes in figure.axes
            ] == ['own expert removed', 'whole family removed']
    alone = {name: (name, ) for name in ('fog', 'rain', 'city')}
    assert len(leave_one_out_chart(fabricated(MIOUS, families=alone)).axes) < 2


def test_rows_are_methods_with_the_oracle_on_top(figure):
    names = labels(figure.axes[0])
    assert names[0] == 'oracle: own expert' and len(names) == 9
    assert figure.axes[0].yaxis_inverted()


def test_dots_are_harmonic_means_and_bars_their_deviation_too(figure):
    dot = figure.axes[0].containers[2]
    x, y = dot.lines[0].get_xydata()[0]
    second = 3 / (1 / 32 + 1 / 62 + 1 / 62)
    assert (x, y) == (pytest.approx((45 + second) / 2), 2)
    left, right = dot.lines[2][0].get_segments()[0][:, 0]
    assert right - left == pytest.approx(2 * (second - 45) / 2**0.5)


def test_small_marks_are_the_targets(figure):
    marks = [
        float(line.get_xdata()[0]) for line in figure.axes[1].lines
        if line.get_markerfacecolor() == 'white'
        and list(line.get_ydata()) == [2]
    ]
    assert marks == [21, 41, 61]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ['harmonic mean ± 1 s.d.', 'oracle', 'fog', 'rain',
                     'city']  # yapf: disable


def test_dashed_line_is_the_oracle(figure):
    for axes in figure.axes:
        dashed = [li for li in axes.lines if li.get_linestyle() == '--']
        assert [float(line.get_xdata()[0]) for line in dashed] == [61]


def test_method_without_a_mean_has_no_dot():
    everyone = dict.fromkeys(('fog', 'rain', 'city'), ('fog', 'rain', 'city'))
    results = fabricated(MIOUS, families=everyone)
    run = results.runs[0]
    kept = tuple(s for s in run.scores if len(s.removed) < 3)
    figure = leave_one_out_chart(
        replace(results, runs=(replace(run, scores=kept), )))
    assert [len(axes.containers) for axes in figure.axes] == [9, 1]
