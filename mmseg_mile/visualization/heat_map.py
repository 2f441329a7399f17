# SPDX-License-Identifier: Apache-2.0
"""A matrix over tasks as coloured cells with their numbers."""
from __future__ import annotations

from typing import List, Sequence, Tuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from .figure_file import new_figure
from .text_fit import fit_text, text_inches

LABEL_SIZE = 9
MAX_LABEL = 1.3
# Beyond this many tasks numbers and names would be too small to read.
MAX_NUMBERED = 24
MAX_NAMED = 40
# Inches around and between the panels.
TITLE, HEADING, AXIS_LABEL = 0.4, 0.3, 0.4
GAP, BAR, BAR_LABEL = 0.2, 0.16, 0.7


def heat_map_figure(names: Sequence[str],
                    num_panels: int) -> Tuple[Figure, List[Axes], Axes]:
    """Figure with square panels in a row and a colour bar on their right.

    Every part is placed in inches by what its text measures, so that
    neither labels overlap nor gaps open, whatever the tasks are called.

    Returns:
        tuple: Figure, the panels, and the axes of the colour bar.
    """
    size = len(names)
    side = size * _cell_inches(size)
    longest = max(map(_label_inches, names))
    below = longest if _upright(names) else 0.15
    left, bottom = longest + AXIS_LABEL, below + AXIS_LABEL
    width = left + num_panels * (side + GAP) + BAR + BAR_LABEL
    height = bottom + side + HEADING + TITLE
    figure = new_figure(width, height)

    def place(x: float, wide: float) -> Axes:
        return figure.add_axes(
            (x / width, bottom / height, wide / width, side / height))

    panels = [place(left + i * (side + GAP), side) for i in range(num_panels)]
    bar = place(width - BAR - BAR_LABEL, BAR)
    return figure, panels, bar


def draw_heat_map(axes: Axes, values: np.ndarray, texts: np.ndarray,
                  names: Sequence[str], scale: ScalarMappable) -> None:
    """Draw a (T, T) matrix; NaN cells stay blank.

    Args:
        axes (Axes): Where to draw.
        values (np.ndarray): (T, T) values that choose the colours.
        texts (np.ndarray): (T, T) strings written into the cells.
        names (Sequence[str]): Task names along both axes.
        scale (ScalarMappable): From values to colours.
    """
    size = len(names)
    image = axes.imshow(
        np.ma.masked_invalid(values), cmap=scale.cmap, interpolation='nearest')
    image.set_norm(scale.norm)
    _name_ticks(axes, names)
    # White lines keep neighbouring cells of one colour apart.
    edges = np.arange(size + 1) - 0.5
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.grid(
        which='minor',
        color='white',
        linewidth=1.2 if size <= MAX_NUMBERED else 0.3)
    axes.tick_params(which='both', length=0)
    axes.spines[:].set_color('0.6')
    if size > MAX_NUMBERED:
        return
    font = 10 if size <= 4 else 9 if size <= 8 else 7.5
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


def _name_ticks(axes: Axes, names: Sequence[str]) -> None:
    size = len(names)
    # A long stream has room for every n-th name only.
    ticks = range(0, size, -(-size // MAX_NAMED))
    labels = [_short(names[i]) for i in ticks]
    font = LABEL_SIZE if size <= MAX_NUMBERED else 6
    axes.set_xticks(
        ticks, labels, fontsize=font, rotation=90 if _upright(names) else 0)
    axes.set_yticks(ticks, labels, fontsize=font)


def _upright(names: Sequence[str]) -> bool:
    """Whether a name along the x axis is wider than its cell."""
    cell = _cell_inches(len(names))
    return any(_label_inches(name) > 0.9 * cell for name in names)


def _cell_inches(num_tasks: int) -> float:
    if num_tasks > MAX_NUMBERED:
        return 9 / num_tasks
    # One or two tasks must leave room for the headings above them.
    return max(0.46, 2.3 / num_tasks, min(0.95, 3.4 / num_tasks))


def _label_inches(name: str) -> float:
    return text_inches(_short(name), LABEL_SIZE) + 0.08


def _short(name: str) -> str:
    return fit_text(name, MAX_LABEL, LABEL_SIZE)


def _readable_on(rgba: np.ndarray) -> str:
    luminance = 0.299 * rgba[0] + 0.587 * rgba[1] + 0.114 * rgba[2]
    return 'black' if luminance > 0.45 else 'white'
