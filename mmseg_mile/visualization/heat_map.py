# SPDX-License-Identifier: Apache-2.0
"""A matrix over tasks as coloured cells with their numbers."""
from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from .figure_file import new_figure
from .task_styles import LABEL_SIZE, name_inches, short_name, upright
from .text_fit import text_inches

# Beyond this many columns numbers would be too small to read.
MAX_NUMBERED = 24
# Beyond this many columns or rows so would be their names.
MAX_NAMED = 40
# Inches around and between the panels.
TITLE, HEADING, AXIS_LABEL = 0.4, 0.3, 0.4
GAP, BAR, BAR_LABEL = 0.2, 0.16, 0.7


def heat_map_figure(
        names: Sequence[str],
        num_panels: int,
        rows: Optional[Sequence[str]] = None,
        bar_each: bool = False) -> Tuple[Figure, List[Axes], List[Axes]]:
    """Figure with panels in a row and a colour bar on their right.

    Every part is placed in inches by what its text measures, so that
    neither labels overlap nor gaps open, whatever the tasks are called.

    Args:
        names (Sequence[str]): Of the columns.
        num_panels (int): How many stand in the row.
        rows (Sequence[str], optional): Names of the rows; without, they are
            those of the columns and the cells are square. Defaults to None.
        bar_each (bool): Whether each panel has a bar of its own, or one
            serves all. Defaults to False.

    Returns:
        tuple: Figure, the panels, and the axes of the colour bars.
    """
    cell = _cell_inches(len(names)) if rows is None else _narrow_cell_inches(
        len(names))
    side = len(names) * cell
    high = side if rows is None else _rows_inches(len(rows))
    below = _names_inches(names) if upright(names, cell) else 0.15
    left = AXIS_LABEL + _names_inches(names if rows is None else rows)
    bottom, bar = below + AXIS_LABEL, BAR + BAR_LABEL
    step = side + GAP + bar * bar_each
    width = left + num_panels * step + bar * (not bar_each)
    height = bottom + high + HEADING + TITLE
    figure = new_figure(width, height)

    def place(x: float, wide: float) -> Axes:
        return figure.add_axes(
            (x / width, bottom / height, wide / width, high / height))

    starts = [left + i * step for i in range(num_panels)]
    panels = [place(x, side) for x in starts]
    if bar_each:
        return figure, panels, [place(x + side + GAP, BAR) for x in starts]
    return figure, panels, [place(width - bar, BAR)]


def draw_heat_map(axes: Axes,
                  values: np.ndarray,
                  texts: np.ndarray,
                  names: Sequence[str],
                  scale: ScalarMappable,
                  rows: Optional[Sequence[str]] = None) -> None:
    """Draw an (R, T) matrix; NaN cells stay blank.

    Args:
        axes (Axes): Where to draw.
        values (np.ndarray): (R, T) values that choose the colours.
        texts (np.ndarray): (R, T) strings written into the cells.
        names (Sequence[str]): Of the T columns.
        scale (ScalarMappable): From values to colours.
        rows (Sequence[str], optional): Of the R rows; without, those of the
            columns. Defaults to None.
    """
    image = axes.imshow(
        np.ma.masked_invalid(values),
        cmap=scale.cmap,
        interpolation='nearest',
        aspect='auto')
    image.set_norm(scale.norm)
    _name_ticks(axes, names, names if rows is None else rows)
    # White lines keep neighbouring cells of one colour apart.
    axes.set_xticks(np.arange(values.shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(values.shape[0] + 1) - 0.5, minor=True)
    small = max(values.shape) > MAX_NUMBERED
    axes.grid(which='minor', color='white', linewidth=0.3 if small else 1.2)
    axes.tick_params(which='both', length=0)
    axes.spines[:].set_color('0.6')
    if values.shape[1] > MAX_NUMBERED or values.shape[0] > MAX_NAMED:
        return
    font = _number_size(values.shape[1], square=rows is None)
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            axes.text(
                column,
                row,
                texts[row, column],
                ha='center',
                va='center',
                fontsize=font,
                color=_readable_on(scale.to_rgba(value)))


def draw_colour_bar(figure: Figure, axes: Axes, scale: ScalarMappable,
                    label: str) -> None:
    """Fill ``axes`` with the colours of ``scale``."""
    bar = figure.colorbar(scale, cax=axes)
    bar.set_label(label, fontsize=10)
    bar.ax.tick_params(labelsize=LABEL_SIZE)
    bar.outline.set_visible(False)


def label_axes(figure: Figure, panels: Sequence[Axes], below: str,
               left: str) -> None:
    """Name the axes once for all panels."""
    middle_x, middle_y = _middle(panels)
    width, height = figure.get_size_inches()
    figure.text(
        middle_x, 0.06 / height, below, fontsize=10, ha='center', va='bottom')
    figure.text(
        0.06 / width,
        middle_y,
        left,
        fontsize=10,
        ha='left',
        va='center',
        rotation=90)


def add_title(figure: Figure, panels: Sequence[Axes], title: str) -> None:
    """Write ``title`` over all panels, smaller where it is long."""
    middle, _ = _middle(panels)
    width, height = figure.get_size_inches()
    room = 1.9 * width * min(middle, 1 - middle)
    needed = text_inches(title, 12, bold=True)
    figure.text(
        middle,
        1 - 0.08 / height,
        title,
        fontsize=12 * min(1, room / needed),
        fontweight='bold',
        ha='center',
        va='top')


def _middle(panels: Sequence[Axes]) -> Tuple[float, float]:
    first, last = panels[0].get_position(), panels[-1].get_position()
    return (first.x0 + last.x1) / 2, (first.y0 + first.y1) / 2


def _name_ticks(axes: Axes, columns: Sequence[str],
                rows: Sequence[str]) -> None:
    square = rows is columns
    cell = (_cell_inches if square else _narrow_cell_inches)(len(columns))
    turned = 90 if upright(columns, cell) else 0
    for names, set_ticks, rotation in ((columns, axes.set_xticks, turned),
                                       (rows, axes.set_yticks, 0)):
        # A long axis has room for every n-th name only.
        ticks = range(0, len(names), -(-len(names) // MAX_NAMED))
        labels = [short_name(names[i]) for i in ticks]
        set_ticks(ticks, labels, fontsize=_font(names), rotation=rotation)


def _font(names: Sequence[str]) -> float:
    return LABEL_SIZE if len(names) <= MAX_NUMBERED else 6


def _names_inches(names: Sequence[str]) -> float:
    """Room that the longest name takes."""
    return max(map(name_inches, names)) * _font(names) / LABEL_SIZE


def _cell_inches(num_tasks: int) -> float:
    if num_tasks > MAX_NUMBERED:
        return 9 / num_tasks
    # One or two tasks must leave room for the headings above them.
    return max(0.46, 2.3 / num_tasks, min(0.95, 3.4 / num_tasks))


def _narrow_cell_inches(num_columns: int) -> float:
    if num_columns > MAX_NUMBERED:
        return 9 / num_columns
    return max(0.4, 2 / num_columns)


def _rows_inches(num_rows: int) -> float:
    """Height of all rows of a panel whose cells are not square."""
    # few rows must leave room for the label of their colour bar
    return max(2.2, 0.25 * min(num_rows, MAX_NAMED))


def _number_size(num_columns: int, square: bool) -> float:
    if not square:
        return 8
    return 10 if num_columns <= 4 else 9 if num_columns <= 8 else 7.5


def _readable_on(rgba: np.ndarray) -> str:
    luminance = 0.299 * rgba[0] + 0.587 * rgba[1] + 0.114 * rgba[2]
    return 'black' if luminance > 0.45 else 'white'
