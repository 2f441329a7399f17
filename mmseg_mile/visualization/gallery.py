# SPDX-License-Identifier: Apache-2.0
"""Rows of pictures with captions, and a legend of the classes in them."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .class_colours import (UNLABELLED, Colour, choose_class_colours,
                            hex_colour, paint_labels)
from .figure_file import new_figure
from .panel import IGNORE_INDEX, Panel
from .text_fit import fit_text, text_inches

# More panels than this stand in two blocks beside each other.
ROWS_PER_BLOCK = 8
# Inches: widths of a picture and of the task's name, then heights.
PICTURE, TASK_NAME, GAP, BLOCK_GAP = 2.6, 0.28, 0.06, 0.25
CAPTION, HEADING, LEGEND_LINE, MARGIN = 0.24, 0.28, 0.21, 0.1
RIGHT, WRONG, NEUTRAL, UNFAMILIAR = '#1a7f37', '#c62828', '0.25', '#b26a00'
MARKS = {True: '\u2713', False: '\u2717'}


@dataclass(frozen=True)
class Caption:
    """Words under a picture.

    Args:
        text (str): The words.
        colour (str): Of the words. Defaults to a dark grey.
        bold (bool): Whether they are bold. Defaults to False.
    """
    text: str
    colour: str = NEUTRAL
    bold: bool = False


Write = Callable[[Panel], Optional[Caption]]


def nothing(panel: Panel) -> Optional[Caption]:
    """No caption."""
    return None


@dataclass(frozen=True)
class Column:
    """What one column of a gallery shows.

    Args:
        title (str): Stands over the column.
        picture (str): 'image', or the name of a label map of the panel.
        left (Callable): Caption of a panel, left under its picture.
        right (Callable): The same on the right.
    """
    title: str
    picture: str
    left: Write = nothing
    right: Write = nothing


def expert_caption(task: str, expert: Optional[str]) -> Optional[Caption]:
    """The expert, green where it is the task's own and else red."""
    if expert is None:
        return None
    name = fit_text(expert, PICTURE - 1.1, 9, bold=True)
    right = expert == task
    return Caption(f'{MARKS[right]} {name}', RIGHT if right else WRONG, True)


def ood_caption(panel: Panel) -> Optional[Caption]:
    """Says so where the gate found the image out-of-distribution."""
    return Caption('ood', UNFAMILIAR, True) if panel.ood else None


def score_caption(miou: Optional[float]) -> Optional[Caption]:
    """mIoU of an image, where there is one."""
    if miou is None or np.isnan(miou):
        return None
    return Caption(f'mIoU {miou:.1f}')


def figure_gallery(panels: Sequence[Panel],
                   columns: Sequence[Column]) -> Figure:
    """One row per panel and a legend of the classes that occur.

    Colours follow class names, so that one class looks the same in every
    picture, whichever task or expert it comes from.

    Raises:
        ValueError: If there is no panel.
    """
    if not panels:
        raise ValueError('panels must hold at least one panel, got none')
    shown = [column.picture for column in columns]
    spaces = [[space for name, _, space in panel.label_maps()
               if name in shown] for panel in panels]  # yapf: disable
    # of all truths first: their colours are those of the datasets
    colours = choose_class_colours([s[0] for s in spaces] +
                                   [s for each in spaces for s in each[1:]])
    blocks = _blocks(panels)
    block_width = TASK_NAME + len(columns) * (PICTURE + GAP)
    width = 2 * MARGIN + len(blocks) * (block_width + BLOCK_GAP) - BLOCK_GAP
    handles, num_columns, legend = _legend(panels, shown, colours, width)
    body = HEADING + max(sum(_row_inches(p) for p in b) for b in blocks)
    height = MARGIN + body + legend + MARGIN

    figure = new_figure(width, height)
    for index, block in enumerate(blocks):
        left = MARGIN + index * (block_width + BLOCK_GAP)
        _draw_block(figure, block, columns, left, height - MARGIN, colours)
    figure.legend(
        handles=handles,
        loc='lower center',
        ncols=num_columns,
        frameon=False,
        fontsize=9,
        bbox_to_anchor=(0.5, 0),
        handlelength=1.2,
        handleheight=1.0,
        columnspacing=1.4)
    return figure


def _blocks(panels: Sequence[Panel]) -> List[Sequence[Panel]]:
    if len(panels) <= ROWS_PER_BLOCK:
        return [panels]
    half = -(-len(panels) // 2)
    return [panels[:half], panels[half:]]


def _row_inches(panel: Panel) -> float:
    high, wide = panel.image.shape[:2]
    return PICTURE * high / wide + CAPTION + GAP


def _draw_block(figure: Figure, panels: Sequence[Panel],
                columns: Sequence[Column], left: float, top: float,
                colours: Dict[str, Colour]) -> None:
    width, height = figure.get_size_inches()
    lefts = [
        left + TASK_NAME + i * (PICTURE + GAP) for i in range(len(columns))
    ]
    for x, column in zip(lefts, columns):
        figure.text(
            (x + PICTURE / 2) / width, (top - 0.08) / height,
            column.title,
            ha='center',
            va='top',
            fontsize=11,
            fontweight='bold')
    y = top - HEADING
    for panel in panels:
        high = _row_inches(panel) - CAPTION - GAP
        for x, column in zip(lefts, columns):
            axes = figure.add_axes((x / width, (y - high) / height,
                                    PICTURE / width, high / height))
            _draw_picture(axes, panel, column, colours)
        figure.text(
            (left + TASK_NAME / 2) / width, (y - high / 2) / height,
            fit_text(panel.task, high, 10),
            rotation=90,
            ha='center',
            va='center',
            fontsize=10)
        y -= _row_inches(panel)


def _draw_picture(axes: Axes, panel: Panel, column: Column,
                  colours: Dict[str, Colour]) -> None:
    pictures = dict(image=panel.image)
    for name, labels, (classes, _) in panel.label_maps():
        if name == column.picture:
            pictures[name] = paint_labels(labels, classes, colours,
                                          IGNORE_INDEX)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_linewidth(0.5)
    axes.imshow(
        pictures[column.picture], aspect='auto', interpolation='antialiased')
    below = -0.03 * panel.image.shape[1] / panel.image.shape[0]
    for x, caption in enumerate((column.left(panel), column.right(panel))):
        if caption is not None:
            axes.text(
                x,
                below,
                caption.text,
                color=caption.colour,
                fontweight='bold' if caption.bold else 'normal',
                transform=axes.transAxes,
                va='top',
                ha='right' if x else 'left',
                fontsize=9)


def _legend(panels: Sequence[Panel], shown: Sequence[str],
            colours: Dict[str, Colour],
            width: float) -> Tuple[List[Patch], int, float]:
    """Handles of the classes that occur, their columns, and the height."""
    occurring = set()
    unlabelled = False
    for panel in panels:
        for name, labels, (classes, _) in panel.label_maps():
            if name in shown:
                values = np.unique(labels)
                unlabelled |= IGNORE_INDEX in values
                occurring |= {classes[v] for v in values if v != IGNORE_INDEX}
    entries = [(name, c) for name, c in colours.items() if name in occurring]
    if unlabelled:
        entries.append(('not labelled', UNLABELLED))
    handles = [
        Patch(
            facecolor=hex_colour(colour),
            edgecolor='0.3',
            linewidth=0.5,
            label=name) for name, colour in entries
    ]
    widest = max(text_inches(name, 9) for name, _ in entries) + 0.5
    columns = max(1, min(len(entries), int(width / widest)))
    lines = -(-len(entries) // columns)
    return handles, columns, lines * LEGEND_LINE + 0.1
