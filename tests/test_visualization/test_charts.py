# SPDX-License-Identifier: Apache-2.0
"""Methods side by side as dots."""
from __future__ import annotations

import pytest
from fabricated_runs import three_methods, write_run

from mmseg_mile.evaluation.leaderboard import read_leaderboard
from mmseg_mile.evaluation.leave_one_out import (LeaveOneOut, Run, Score,
                                                 removals)
from mmseg_mile.visualization.charts import (leaderboard_chart,
                                             leave_one_out_chart)


def chart(root):
    return leaderboard_chart(read_leaderboard([root]).comparisons[0])


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

TARGETS = ('fog', 'rain', 'city')
FAMILIES = dict(fog=('fog', 'rain'), rain=('fog', 'rain'), city=('city', ))
MIOUS = dict(none=(60, 60, 60), own=(30, 60, 60), family=(20, 40, 60))


def left_out(seeds=(0, ), families=FAMILIES):
    """Scores of 'oracle' and 'nearest'; a further seed has 2 more."""
    runs = []
    for index, seed in enumerate(seeds):
        scores = []
        for column, target in enumerate(TARGETS):
            cells = removals(target, families[target])
            for scope, removed in cells.items():
                method = 'nearest' if removed else 'oracle'
                if len(removed) < 3:
                    scores.append(
                        Score(target, removed, method, 10, 10, 0,
                              MIOUS[scope][column] + 2. * index))
        runs.append(Run(seed, (), tuple(scores), {}))
    return leave_one_out_chart(
        LeaveOneOut('street', 'MILE', TARGETS, families, {}, tuple(runs)))


def test_a_panel_per_kind_of_removal_and_a_row_per_method():
    figure = left_out((0, 1))
    assert [axes.get_title() for axes in figure.axes
            ] == ['own expert removed', 'whole family removed']
    assert labels(figure.axes[0]) == ['oracle: own expert', 'nearest expert']
    assert figure.axes[0].yaxis_inverted()
    assert len(left_out(families={n: (n, ) for n in TARGETS}).axes) == 1
    # no expert is left without such a family, and so no mean
    everyone = left_out(families=dict.fromkeys(TARGETS, TARGETS))
    assert [len(axes.containers) for axes in everyone.axes] == [2, 1]


def test_dots_are_harmonic_means_and_marks_the_targets():
    own, family = left_out((0, 1)).axes
    dot = own.containers[1]
    x, y = dot.lines[0].get_xydata()[0]
    second = 3 / (1 / 32 + 1 / 62 + 1 / 62)
    assert (x, y) == (pytest.approx((45 + second) / 2), 1)
    left, right = dot.lines[2][0].get_segments()[0][:, 0]
    assert right - left == pytest.approx(2 * (second - 45) / 2**0.5)
    marks = [
        float(line.get_xdata()[0]) for line in family.lines
        if line.get_markerfacecolor() == 'white'
        and list(line.get_ydata()) == [1]
    ]
    assert marks == [21, 41, 61]
    dashed = [line for line in own.lines if line.get_linestyle() == '--']
    assert [float(line.get_xdata()[0]) for line in dashed] == [61]
    names = [text.get_text() for text in own.figure.legends[0].get_texts()]
    assert names == ['harmonic mean ± 1 s.d.', 'oracle', *TARGETS]
