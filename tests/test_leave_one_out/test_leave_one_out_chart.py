# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from fabricated_left_out import fabricated
from matplotlib.figure import Figure

from mmseg_mile.visualization import save_figure
from mmseg_mile.visualization.leave_one_out_chart import leave_one_out_chart

MIOUS = {
    ('none', 'oracle'): (60, 60, 60),
    ('own', 'nearest'): (30, 60, 60),
    ('family', 'nearest'): (20, 40, 60),
}


@pytest.fixture
def figure() -> Figure:
    return leave_one_out_chart(fabricated(MIOUS, (0, 1)))


def test_a_panel_per_kind_of_removal(figure: Figure) -> None:
    assert [axes.get_title() for axes in figure.axes
            ] == ['own expert removed', 'whole family removed']
    alone = {name: (name, ) for name in ('fog', 'rain', 'city')}
    one = leave_one_out_chart(fabricated(MIOUS, families=alone))
    assert len(one.axes) == 1


def test_rows_are_methods_with_the_oracle_on_top(figure: Figure) -> None:
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[0] == 'oracle: own expert' and len(names) == 9
    assert axes.yaxis_inverted()


def test_dots_are_harmonic_means_and_bars_their_deviation(
        figure: Figure) -> None:
    axes = figure.axes[0]
    x, y = axes.containers[2].lines[0].get_xydata()[0]
    second = 3 / (1 / 32 + 1 / 62 + 1 / 62)
    assert (x, y) == (pytest.approx((45 + second) / 2), 2)
    left, right = axes.containers[2].lines[2][0].get_segments()[0][:, 0]
    assert right - left == pytest.approx(2 * (second - 45) / 2**0.5)


def test_small_marks_are_the_targets(figure: Figure) -> None:
    axes = figure.axes[1]
    marks = [
        float(line.get_xdata()[0]) for line in axes.lines
        if line.get_markersize() == 4.5 and list(line.get_ydata()) == [2]
    ]
    assert marks == [21, 41, 61]


def test_dashed_line_is_the_oracle(figure: Figure) -> None:
    for axes in figure.axes:
        dashed = [li for li in axes.lines if li.get_linestyle() == '--']
        assert [float(line.get_xdata()[0]) for line in dashed] == [61]


def test_legend_names_the_targets(figure: Figure) -> None:
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ['harmonic mean ± 1 s.d.', 'oracle', 'fog', 'rain',
                      'city']  # yapf: disable


def test_method_without_a_mean_has_no_dot(tmp_path) -> None:
    everyone = dict.fromkeys(('fog', 'rain', 'city'), ('fog', 'rain', 'city'))
    results = fabricated(MIOUS, families=everyone)
    from dataclasses import replace
    run = results.runs[0]
    kept = tuple(s for s in run.scores if len(s.removed) < 3)
    figure = leave_one_out_chart(
        replace(results, runs=(replace(run, scores=kept), )))
    assert len(figure.axes[0].containers) == 9
    assert len(figure.axes[1].containers) == 1
    assert save_figure(figure, tmp_path / 'a.png').stat().st_size > 1000
