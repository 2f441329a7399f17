# SPDX-License-Identifier: Apache-2.0
"""How the score of each task goes on while later ones are learned."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmseg_mile.evaluation.results import StreamResults
from .figure_file import PathLike, new_figure, save_figure
from .heat_map import add_title, label_axes
from .task_styles import (LABEL_SIZE, MAX_STYLED, name_inches, short_name,
                          task_styles, upright)
from .text_fit import text_inches

MEAN, MEAN_COLOUR, FAINT = 'mean of seen', 'black', '0.75'
# Lines that lie closer than this, in points of mIoU, are one line.
SAME = 0.05
# Points of mIoU that the axis spans at least, or noise would look grave.
MIN_SPAN = 10
# Inches; a name beside a line takes one line of text.
TITLE, AXIS_LABEL, TICKS, LEGEND, LEADER = 0.4, 0.35, 0.5, 0.3, 0.3
LINE, MIN_HEIGHT, MIN_WIDTH, MAX_WIDTH = 0.17, 2.8, 3.2, 9.0
MAX_NAMED, SMALL = 40, 6


def draw_stream_curves(results: StreamResults, path: PathLike) -> Path:
    """Write :func:`figure_stream_curves` as a PNG.

    Returns:
        Path: The PNG that was written.

    Raises:
        ValueError: If no row of the score matrix is finished.
    """
    return save_figure(figure_stream_curves(results), path)


def figure_stream_curves(results: StreamResults) -> Figure:
    """mIoU of each task from when it is learned, and the mean of all seen.

    Solid lines are routed; where the true task's expert scores otherwise,
    a dashed line of the same colour shows it. Names stand at the ends of
    their lines. More than ``MAX_STYLED`` tasks are faint lines that show
    the spread around the mean.

    Raises:
        ValueError: If no row of the score matrix is finished.
    """
    rows = results.num_finished_rows
    if not rows:
        raise ValueError('miou.routed has no finished row: no task was '
                         'evaluated yet, so there is nothing to draw')
    names = results.tasks[:rows]
    styled = len(names) <= MAX_STYLED
    labels = [MEAN, *map(short_name, names)] if styled else [MEAN]
    cell = max(0.45, MIN_WIDTH / len(names), MAX_WIDTH / 24)
    wide = min(MAX_WIDTH, cell * len(names))
    high = max(MIN_HEIGHT, LINE * len(labels))
    turned = upright(names, wide / len(names))
    font = LABEL_SIZE if styled else SMALL
    below = AXIS_LABEL + (
        max(map(name_inches, names)) * font / LABEL_SIZE if turned else 0.2)
    right = LEADER + 0.1 + max(
        text_inches(label, LABEL_SIZE, bold=True) for label in labels)
    left = AXIS_LABEL + TICKS
    width = left + wide + right
    dashed = _has_oracle_lines(results, rows)
    height = below + high + LEGEND * dashed + TITLE

    figure = new_figure(width, height)
    axes = figure.add_axes(
        (left / width, below / height, wide / width, high / height))
    ends = _draw_lines(axes, results, rows, styled)
    _finish_axes(axes, names, font, turned)
    _name_ends(axes, ends, high, wide)
    if dashed:
        _legend(figure, (left + wide / 2) / width,
                (below + high + 0.06) / height)
    label_axes(figure, [axes], 'after learning', 'mIoU (%)')
    add_title(figure, [axes], f'{results.method} on {results.stream}, '
              f'seed {results.seed}')
    return figure


def seen_means(results: StreamResults, kind: str) -> np.ndarray:
    """(rows,) mean mIoU of the tasks learned so far, per finished row."""
    rows = results.num_finished_rows
    return np.array(
        [results.miou[kind][i, :i + 1].mean() for i in range(rows)])


def _draw_lines(axes: Axes, results: StreamResults, rows: int,
                styled: bool) -> List[Tuple[float, str, str]]:
    """Draw all; returns the last value, name and colour of each line."""
    ends = []
    for index, (colour, marker) in enumerate(task_styles(rows)):
        look: Dict[str, Any] = dict(
            color=FAINT, linewidth=0.6, alpha=max(0.15, MAX_STYLED / rows))
        if styled:
            look = dict(
                color=colour,
                marker=marker,
                markersize=5,
                linewidth=1.5,
                clip_on=False)
        steps = np.arange(index, rows)
        routed, oracle = (
            results.miou[kind][index:rows, index]
            for kind in ('routed', 'oracle'))
        if styled:
            _draw_oracle(axes, steps, routed, oracle, colour)
            ends.append((routed[-1], short_name(results.tasks[index]), colour))
        axes.plot(steps, routed, **look)
    mean = seen_means(results, 'routed')
    steps = np.arange(rows)
    _draw_oracle(axes, steps, mean, seen_means(results, 'oracle'), MEAN_COLOUR)
    axes.plot(
        steps,
        mean,
        color=MEAN_COLOUR,
        linewidth=3,
        marker='o' if rows == 1 else '',
        markersize=8,
        solid_capstyle='round',
        clip_on=False,
        zorder=1.9)
    ends.append((mean[-1], MEAN, MEAN_COLOUR))
    return ends


def _differs(routed: np.ndarray, oracle: np.ndarray) -> bool:
    return bool((np.abs(oracle - routed) > SAME).any())


def _draw_oracle(axes: Axes, steps: np.ndarray, routed: np.ndarray,
                 oracle: np.ndarray, colour: str) -> None:
    if _differs(routed, oracle):
        axes.plot(
            steps,
            oracle,
            color=colour,
            linestyle=(0, (3, 2)),
            linewidth=1.2,
            # one step is no line
            marker='_' if len(steps) == 1 else '',
            markersize=9,
            clip_on=False)


def _finish_axes(axes: Axes, names: List[str], font: float,
                 turned: bool) -> None:
    size = len(names)
    values = np.concatenate([line.get_ydata() for line in axes.lines])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    spare = max(0.05 * (high - low), (MIN_SPAN - (high - low)) / 2)
    axes.set_ylim(max(0, low - spare), min(100, high + spare))
    axes.set_xlim(-0.5, size - 0.5)
    ticks = range(0, size, -(-size // MAX_NAMED))
    axes.set_xticks(
        ticks, [short_name(names[i]) for i in ticks],
        fontsize=font,
        rotation=90 if turned else 0)
    axes.tick_params(axis='x', length=0)
    axes.tick_params(axis='y', labelsize=LABEL_SIZE)
    axes.grid(axis='y', color='0.9', linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    axes.spines[:].set_color('0.6')


def _name_ends(axes: Axes, ends: List[Tuple[float, str, str]], high: float,
               wide: float) -> None:
    """Write the names right of the axes, apart from each other."""
    low, top = axes.get_ylim()
    order = sorted(range(len(ends)), key=lambda i: ends[i][0])
    wanted = [(ends[i][0] - low) / (top - low) * high for i in order]
    last = axes.get_xlim()[1] - 0.5
    per_inch = (axes.get_xlim()[1] - axes.get_xlim()[0]) / wide
    for i, inches in zip(order, spread(wanted, LINE, high)):
        value, name, colour = ends[i]
        y = low + inches / high * (top - low)
        x = axes.get_xlim()[1] + LEADER * per_inch
        axes.plot((last, axes.get_xlim()[1], x - 0.05 * per_inch),
                  (value, value, y),
                  color=colour,
                  linewidth=0.6,
                  alpha=0.6,
                  clip_on=False,
                  zorder=1)
        axes.text(
            x,
            y,
            name,
            color=colour,
            fontsize=LABEL_SIZE,
            fontweight='bold' if name == MEAN else 'normal',
            ha='left',
            va='center')


def spread(wanted: List[float], gap: float, room: float) -> List[float]:
    """Places at least ``gap`` apart, each near the one it wants.

    Args:
        wanted (list[float]): In rising order.
        gap (float): Between neighbours.
        room (float): Places lie in ``gap / 2`` to ``room - gap / 2`` where
            all fit.
    """
    # neighbours that are too close become one block around their mean
    blocks: List[List[float]] = []
    for place in wanted:
        blocks.append([place])
        while len(blocks) > 1 and _start(
                blocks[-1], gap,
                room) < _start(blocks[-2], gap, room) + gap * len(blocks[-2]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    return [
        _start(block, gap, room) + gap * i for block in blocks
        for i in range(len(block))
    ]


def _start(block: List[float], gap: float, room: float) -> float:
    length = gap * (len(block) - 1)
    start = sum(block) / len(block) - length / 2
    return max(gap / 2, min(start, room - gap / 2 - length))


def _has_oracle_lines(results: StreamResults, rows: int) -> bool:
    learned = np.tri(rows, dtype=bool)
    routed, oracle = (
        results.miou[kind][:rows, :rows][learned]
        for kind in ('routed', 'oracle'))
    return _differs(routed, oracle)


def _legend(figure: Figure, x: float, y: float) -> None:
    """Say what solid and dashed lines are."""
    handles = [
        Line2D([], [], color='0.3', linewidth=1.5, label='routed'),
        Line2D([], [],
               color='0.3',
               linewidth=1.2,
               linestyle=(0, (3, 2)),
               label='oracle (true task)')
    ]
    figure.legend(
        handles=handles,
        loc='lower center',
        bbox_to_anchor=(x, y),
        ncols=2,
        frameon=False,
        fontsize=LABEL_SIZE,
        borderpad=0,
        borderaxespad=0)
