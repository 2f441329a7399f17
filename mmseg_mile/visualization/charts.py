# SPDX-License-Identifier: Apache-2.0
"""Methods side by side, as dots with their spread."""
from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmseg_mile.evaluation.continual_scores import Spread
from mmseg_mile.evaluation.leaderboard import Comparison
from mmseg_mile.evaluation.leave_one_out import (COMPARED, ORACLE, LeaveOneOut,
                                                 title_of)
from .plots import LETTERS, STYLE, new_figure, short_name, task_styles

RANKED, HELPED = '#1f5a96', '#7a7a7a'


@rc_context(STYLE)
def leaderboard_chart(board: Comparison) -> Figure:
    """Average mIoU of every method, best on top.

    A filled dot is the mean at the end and its bar one standard deviation;
    small marks are the seeds. The open dot is the mean of the tasks just
    learned, so the line between the two is what was forgotten or gained.
    Methods that get a task label or old images are grey.
    """
    rows = board.rows
    figure, (axes, ) = _dot_figure([row.method for row in rows], 1)
    for y, row in enumerate(rows):
        colour = HELPED if row.help else RANKED
        average = row.figures['average_miou']
        learned = row.figures['plasticity'].mean
        seeds = [figures['average_miou'] for figures in row.run_figures]
        axes.plot([learned, average.mean], [y, y], color='0.6', lw=1)
        axes.plot(learned, y, 'o', color=colour, mfc='white')
        axes.plot(seeds, [y] * len(seeds), '|', color=colour)
        _plot_mean(axes, y, average, colour)
        axes.get_yticklabels()[y].set_color(colour)
    axes.set_xlabel('mean mIoU over tasks (%)')
    handles = [
        _mark('at the end, ± 1 s.d.', 'o', RANKED),
        _mark('just learned', 'o', RANKED, 'white'),
        _mark('one seed', '|', RANKED)
    ]
    if any(row.help for row in rows):
        handles.append(_mark('gets task label or old images', 'o', HELPED))
    figure.legend(handles=handles, loc='outside upper center', ncols=2)
    return figure


@rc_context(STYLE)
def leave_one_out_chart(results: LeaveOneOut) -> Figure:
    """Harmonic mean over the targets of every method.

    A filled dot is the mean over the seeds and its bar one standard
    deviation; the small marks are the targets, mean over the seeds. The
    dashed line is the oracle, which has the removed expert. A second panel
    shows the removal of families, where there are some.
    """
    methods = [m for m in COMPARED if m in results.methods]
    titles = dict(own='own expert removed', family='whole family removed')
    scopes = results.scopes[1:]
    styles = task_styles(len(results.tasks))
    oracle = results.harmonic('none', ORACLE).mean
    figure, panels = _dot_figure([title_of(m) for m in methods], len(scopes))
    for axes, scope in zip(panels, scopes):
        for y, method in enumerate(methods):
            targets = results.values(scope, method).mean(0)
            for value, (colour, marker) in zip(targets, styles):
                axes.plot(value, y, marker, color=colour, mfc='white')
            _plot_mean(axes, y, results.harmonic(scope, method), RANKED)
        axes.axvline(oracle, color='0.6', linestyle='--', linewidth=1)
        axes.set_title(titles[scope], fontsize=9)
        axes.set_xlabel('mIoU (%)')
    label = 'harmonic mean' + ' ± 1 s.d.' * (len(results.runs) > 1)
    handles = [
        _mark(label, 'o', RANKED),
        Line2D([], [], color='0.6', linestyle='--', label='oracle')
    ]
    handles += [
        _mark(short_name(name), marker, colour, 'white')
        for name, (colour, marker) in zip(results.tasks, styles)
    ]
    figure.legend(handles=handles, loc='outside upper center', ncols=4)
    return figure


def _dot_figure(names: Sequence[str],
                num_panels: int) -> Tuple[Figure, List[Axes]]:
    """Panels beside each other with a row per name, the first on top."""
    names = [short_name(name, 48) for name in names]
    figure = new_figure(
        max(map(len, names)) / LETTERS + 3.7 * num_panels,
        1.5 + 0.37 * len(names))
    panels = figure.subplots(1, num_panels, sharey=True, squeeze=False)[0]
    for axes in panels:
        axes.grid(axis='x')
        axes.spines[['top', 'right', 'left']].set_visible(False)
        axes.tick_params(axis='y', length=0)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    return figure, list(panels)


def _plot_mean(axes: Axes, y: int, value: Spread, colour: str) -> None:
    """A dot at the mean, one standard deviation as a bar, and the number."""
    if np.isnan(value.mean):
        return
    bar = None if np.isnan(value.deviation) else value.deviation
    axes.errorbar(
        value.mean, y, xerr=bar, fmt='o', c=colour, elinewidth=2, capsize=3)
    axes.annotate(
        f'{value.mean:.1f}', (value.mean, y), (0, 5),
        textcoords='offset points',
        ha='center',
        fontsize=7.5,
        color=colour)


def _mark(label: str,
          marker: str,
          colour: str,
          face: Optional[str] = None) -> Line2D:
    return Line2D([], [],
                  marker=marker,
                  linestyle='',
                  color=colour,
                  markerfacecolor=face or colour,
                  label=label)
