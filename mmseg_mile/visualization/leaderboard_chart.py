# SPDX-License-Identifier: Apache-2.0
"""The methods of one stream as dots with their spread."""
from __future__ import annotations

from typing import List

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmseg_mile.evaluation.leaderboard import Comparison, Row
from .figure_file import new_figure
from .text_fit import fit_text, text_inches

# Inches of the dots, beside the names.
WIDTH = 3.7
ROW = 0.36
NAME_SIZE = 9
MAX_NAME = 3.2
RANKED, HELPED = '#1f5a96', '#7a7a7a'


def leaderboard_chart(board: Comparison) -> Figure:
    """Average mIoU of every method, best on top.

    A filled dot is the mean at the end and its bar one standard deviation;
    small dots are the seeds. The open dot is the mean of the tasks just
    learned, so the line between the two is what was forgotten or gained.
    Methods that get a task label or old images are grey.
    """
    count = len(board.rows)
    names = [fit_text(s.method, MAX_NAME, NAME_SIZE) for s in board.rows]
    room = max((text_inches(name, NAME_SIZE) for name in names), default=0)
    figure = new_figure(WIDTH + room, 1.25 + ROW * count, layout='constrained')
    axes = figure.subplots()
    for row, standing in enumerate(board.rows):
        _draw(axes, row, standing)
    axes.set_yticks(range(count), names, fontsize=NAME_SIZE)
    for label, standing in zip(axes.get_yticklabels(), board.rows):
        label.set_color(_colour(standing))
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_xlabel('mean mIoU over tasks (%)', fontsize=NAME_SIZE)
    axes.tick_params(axis='x', labelsize=NAME_SIZE)
    axes.tick_params(axis='y', length=0)
    axes.grid(axis='x', color='0.88', linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right', 'left']].set_visible(False)
    axes.legend(
        handles=_legend(board),
        loc='lower center',
        bbox_to_anchor=(0.4, 1.0),
        ncols=2,
        fontsize=8,
        frameon=False,
        handletextpad=0.4,
        columnspacing=1.2)
    return figure


def _draw(axes: Axes, row: int, standing: Row) -> None:
    colour = _colour(standing)
    average = standing.figures['average_miou']
    learned = standing.figures['plasticity'].mean
    axes.plot([learned, average.mean], [row] * 2, color='0.6', linewidth=1)
    axes.plot(
        learned,
        row,
        marker='o',
        markersize=6.5,
        markerfacecolor='white',
        markeredgecolor=colour,
        linestyle='none')
    seeds = [figures['average_miou'] for figures in standing.run_figures]
    axes.plot(
        seeds, [row] * len(seeds),
        marker='|',
        markersize=7,
        color=colour,
        linestyle='none')
    axes.errorbar(
        average.mean,
        row,
        xerr=None if np.isnan(average.deviation) else average.deviation,
        fmt='o',
        markersize=6,
        color=colour,
        elinewidth=2,
        capsize=3)
    axes.annotate(
        f'{average.mean:.1f}', (average.mean, row),
        xytext=(0, 6),
        textcoords='offset points',
        ha='center',
        va='bottom',
        fontsize=7.5,
        color=colour)


def _legend(board: Comparison) -> List[Line2D]:

    def dot(label: str, colour: str, face: str) -> Line2D:
        return Line2D([], [],
                      marker='o',
                      linestyle='none',
                      color=colour,
                      markerfacecolor=face,
                      label=label)

    handles = [
        dot('at the end, ± 1 s.d.', RANKED, RANKED),
        dot('just learned', RANKED, 'white'),
        Line2D([], [],
               marker='|',
               linestyle='none',
               color=RANKED,
               label='one seed')
    ]
    if any(standing.help for standing in board.rows):
        handles.append(dot('gets task label or old images', HELPED, HELPED))
    return handles


def _colour(standing: Row) -> str:
    return HELPED if standing.help else RANKED
