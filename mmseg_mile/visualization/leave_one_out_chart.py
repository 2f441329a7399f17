# SPDX-License-Identifier: Apache-2.0
"""Ways to do without the right expert, as dots with their spread."""
from __future__ import annotations

from typing import List

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmseg_mile.evaluation.leave_one_out import (COMPARED, ORACLE, LeaveOneOut,
                                                 title_of)
from .figure_file import new_figure
from .task_styles import short_name, task_styles
from .text_fit import fit_text, text_inches

# Inches of one panel, beside the names.
WIDTH = 3.7
ROW = 0.38
NAME_SIZE = 9
MAX_NAME = 3.2
COLOUR = '#1f5a96'
PANELS = dict(own='own expert removed', family='whole family removed')


def leave_one_out_chart(results: LeaveOneOut) -> Figure:
    """Harmonic mean over the targets of every method.

    A filled dot is the mean over the seeds and its bar one standard
    deviation; the small marks are the targets, mean over the seeds. The
    dashed line is the oracle, which has the removed expert. A second panel
    shows the removal of families, where there are some.
    """
    methods = [m for m in COMPARED if m in results.methods]
    names = [fit_text(title_of(m), MAX_NAME, NAME_SIZE) for m in methods]
    room = max(text_inches(name, NAME_SIZE) for name in names)
    scopes = results.scopes[1:]
    figure = new_figure(
        room + WIDTH * len(scopes),
        1.6 + ROW * len(methods),
        layout='constrained')
    panels = figure.subplots(1, len(scopes), sharey=True, squeeze=False)[0]
    for axes, scope in zip(panels, scopes):
        for row, method in enumerate(methods):
            _draw(axes, row, results, scope, method)
        axes.axvline(
            results.harmonic('none', ORACLE).mean,
            color='0.6',
            linestyle='--',
            linewidth=1,
            zorder=0)
        axes.set_title(PANELS[scope], fontsize=NAME_SIZE)
        axes.set_xlabel('mIoU (%)', fontsize=NAME_SIZE)
        axes.tick_params(axis='x', labelsize=NAME_SIZE)
        axes.tick_params(axis='y', length=0)
        axes.grid(axis='x', color='0.88', linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[['top', 'right', 'left']].set_visible(False)
    panels[0].set_yticks(range(len(methods)), names, fontsize=NAME_SIZE)
    panels[0].set_ylim(len(methods) - 0.4, -0.6)
    figure.legend(
        handles=_legend(results),
        loc='outside upper center',
        ncols=4,
        fontsize=8,
        frameon=False,
        handletextpad=0.4,
        columnspacing=1.2)
    return figure


def _draw(axes: Axes, row: int, results: LeaveOneOut, scope: str,
          method: str) -> None:
    targets = results.values(scope, method).mean(0)
    for value, (colour, marker) in zip(targets,
                                       task_styles(len(results.tasks))):
        axes.plot(
            value,
            row,
            marker=marker,
            markersize=4.5,
            markerfacecolor='white',
            markeredgecolor=colour,
            linestyle='none')
    total = results.harmonic(scope, method)
    if np.isnan(total.mean):
        return
    axes.errorbar(
        total.mean,
        row,
        xerr=None if np.isnan(total.deviation) else total.deviation,
        fmt='o',
        markersize=6.5,
        color=COLOUR,
        elinewidth=2,
        capsize=3)
    axes.annotate(
        f'{total.mean:.1f}', (total.mean, row),
        xytext=(0, 6),
        textcoords='offset points',
        ha='center',
        va='bottom',
        fontsize=7.5,
        color=COLOUR)


def _legend(results: LeaveOneOut) -> List[Line2D]:
    total = 'harmonic mean'
    if len(results.runs) > 1:
        total += ' ± 1 s.d.'
    styles = zip(results.tasks, task_styles(len(results.tasks)))
    return [
        Line2D([], [], marker='o', linestyle='none', color=COLOUR,
               label=total),
        Line2D([], [], color='0.6', linestyle='--', linewidth=1,
               label='oracle'),
        *(Line2D([], [], marker=marker, linestyle='none', markersize=4.5,
                 markerfacecolor='white', markeredgecolor=colour,
                 label=short_name(name))
          for name, (colour, marker) in styles)
    ]  # yapf: disable
