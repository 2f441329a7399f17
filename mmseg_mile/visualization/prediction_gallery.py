# SPDX-License-Identifier: Apache-2.0
"""Rows of image, ground truth and prediction with the chosen expert."""
from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .class_colours import (UNLABELLED, Colour, choose_class_colours,
                            paint_labels)
from .figure_file import PathLike, new_figure, save_figure
from .text_fit import fit_text, text_inches

IGNORE_INDEX = 255
# More panels than this stand in two blocks beside each other.
ROWS_PER_BLOCK = 8
COLUMNS = ('Image', 'Ground truth', 'Prediction')
# Inches: widths of a picture and of the task's name, then heights.
PICTURE, TASK_NAME, GAP, BLOCK_GAP = 2.6, 0.28, 0.06, 0.25
CAPTION, HEADING, LEGEND_LINE, MARGIN = 0.24, 0.28, 0.21, 0.1
RIGHT, WRONG, NEUTRAL, UNFAMILIAR = '#1a7f37', '#c62828', '0.25', '#b26a00'
MARKS = {True: '\u2713', False: '\u2717'}


@dataclass(frozen=True)
class Panel:
    """One image with its ground truth, prediction and routing.

    Args:
        image (np.ndarray): (H, W, 3) uint8 RGB.
        truth (np.ndarray): (H, W) labels, 255 where there is none.
        prediction (np.ndarray): (H, W) labels.
        truth_classes (Sequence[str]): Label space of the truth.
        truth_palette (Sequence): One RGB triple per class of the truth.
        prediction_classes (Sequence[str]): Label space of the prediction,
            that of the chosen expert.
        prediction_palette (Sequence): Its colours; used for the classes
            that the truth lacks.
        task (str): Name of the image's task.
        expert (str, optional): Chosen expert; None where there are none.
        unfamiliar (bool, optional): Whether the gate found the image
            unfamiliar; None where it does not say. Defaults to None.
        miou (float, optional): mIoU of this image in per cent. Defaults to
            None.

    Raises:
        ValueError: If the maps differ in size or hold a value that is
            neither a class nor 255.
    """
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    truth_classes: Sequence[str]
    truth_palette: Sequence[Sequence[int]]
    prediction_classes: Sequence[str]
    prediction_palette: Sequence[Sequence[int]]
    task: str
    expert: Optional[str]
    unfamiliar: Optional[bool] = None
    miou: Optional[float] = None

    def __post_init__(self) -> None:
        size = self.image.shape[:2]
        maps = dict(
            truth=(self.truth, self.truth_classes),
            prediction=(self.prediction, self.prediction_classes))
        for name, (labels, classes) in maps.items():
            if labels.shape != size:
                raise ValueError(f'{name} must have the size of the image, '
                                 f'{size}, got {labels.shape}')
            wrong = np.setdiff1d(labels, [*range(len(classes)), IGNORE_INDEX])
            if wrong.size:
                raise ValueError(
                    f'{name} holds the values {wrong.tolist()}, allowed are '
                    f'0 to {len(classes) - 1} and {IGNORE_INDEX}')


def draw_prediction_gallery(panels: Sequence[Panel], path: PathLike) -> Path:
    """Draw one row per panel and a legend of the classes that occur.

    Colours follow class names. Under a prediction stands the chosen expert,
    green where it is the image's own task and red where it is not.

    Returns:
        Path: The PNG that was written.

    Raises:
        ValueError: If there is no panel.
    """
    if not panels:
        raise ValueError('panels must hold at least one panel, got none')
    colours = choose_class_colours([(p.truth_classes, p.truth_palette)
                                    for p in panels] + [(p.prediction_classes,
                                                         p.prediction_palette)
                                                        for p in panels])
    blocks = _blocks(panels)
    block_width = TASK_NAME + len(COLUMNS) * (PICTURE + GAP)
    width = 2 * MARGIN + len(blocks) * (block_width + BLOCK_GAP) - BLOCK_GAP
    handles, num_columns, legend = _legend(panels, colours, width)
    body = HEADING + max(sum(_row_inches(p) for p in b) for b in blocks)
    height = MARGIN + body + legend + MARGIN

    figure = new_figure(width, height)
    for index, block in enumerate(blocks):
        left = MARGIN + index * (block_width + BLOCK_GAP)
        _draw_block(figure, block, left, height - MARGIN, colours)
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
    return save_figure(figure, path)


def _blocks(panels: Sequence[Panel]) -> List[Sequence[Panel]]:
    if len(panels) <= ROWS_PER_BLOCK:
        return [panels]
    half = -(-len(panels) // 2)
    return [panels[:half], panels[half:]]


def _row_inches(panel: Panel) -> float:
    high, wide = panel.image.shape[:2]
    return PICTURE * high / wide + CAPTION + GAP


def _draw_block(figure: Figure, panels: Sequence[Panel], left: float,
                top: float, colours: Dict[str, Colour]) -> None:
    width, height = figure.get_size_inches()
    lefts = [
        left + TASK_NAME + i * (PICTURE + GAP) for i in range(len(COLUMNS))
    ]
    for x, title in zip(lefts, COLUMNS):
        figure.text(
            (x + PICTURE / 2) / width, (top - 0.08) / height,
            title,
            ha='center',
            va='top',
            fontsize=11,
            fontweight='bold')
    y = top - HEADING
    for panel in panels:
        high = _row_inches(panel) - CAPTION - GAP
        axes = [
            figure.add_axes((x / width, (y - high) / height, PICTURE / width,
                             high / height)) for x in lefts
        ]
        _draw_row(axes, panel, colours)
        figure.text(
            (left + TASK_NAME / 2) / width, (y - high / 2) / height,
            fit_text(panel.task, high, 10),
            rotation=90,
            ha='center',
            va='center',
            fontsize=10)
        y -= _row_inches(panel)


def _draw_row(axes: Sequence[Axes], panel: Panel,
              colours: Dict[str, Colour]) -> None:
    pictures = (panel.image,
                paint_labels(panel.truth, panel.truth_classes, colours,
                             IGNORE_INDEX),
                paint_labels(panel.prediction, panel.prediction_classes,
                             colours, IGNORE_INDEX))
    for ax, picture in zip(axes, pictures):
        ax.imshow(picture, aspect='auto', interpolation='antialiased')
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_linewidth(0.5)
    _write_captions(axes, panel)


def _write_captions(axes: Sequence[Axes], panel: Panel) -> None:
    below = -0.03 * panel.image.shape[1] / panel.image.shape[0]

    def write(column: int, x: float, text: str, colour: str,
              weight: str) -> None:
        axes[column].text(
            x,
            below,
            text,
            color=colour,
            fontweight=weight,
            transform=axes[column].transAxes,
            va='top',
            ha='right' if x else 'left',
            fontsize=9)

    if panel.unfamiliar:
        write(0, 0, 'unfamiliar', UNFAMILIAR, 'bold')
    if panel.expert is not None:
        right = panel.expert == panel.task
        name = fit_text(panel.expert, PICTURE - 1.1, 9, bold=True)
        write(2, 0, f'{MARKS[right]} {name}', RIGHT if right else WRONG,
              'bold')
    if panel.miou is not None and not math.isnan(panel.miou):
        write(2, 1, f'mIoU {panel.miou:.1f}', NEUTRAL, 'normal')


def _legend(panels: Sequence[Panel], colours: Dict[str, Colour],
            width: float) -> Tuple[List[Patch], int, float]:
    """Handles of the classes that occur, their columns, and the height."""
    occurring = set()
    unlabelled = False
    for panel in panels:
        for labels, classes in ((panel.truth, panel.truth_classes),
                                (panel.prediction, panel.prediction_classes)):
            values = np.unique(labels)
            unlabelled |= IGNORE_INDEX in values
            occurring |= {classes[v] for v in values if v != IGNORE_INDEX}
    entries = [(name, c) for name, c in colours.items() if name in occurring]
    if unlabelled:
        entries.append(('not labelled', UNLABELLED))
    handles = [
        Patch(
            facecolor='#{:02x}{:02x}{:02x}'.format(*colour),
            edgecolor='0.3',
            linewidth=0.5,
            label=name) for name, colour in entries
    ]
    widest = max(text_inches(name, 9) for name, _ in entries) + 0.5
    columns = max(1, min(len(entries), int(width / widest)))
    lines = -(-len(entries) // columns)
    return handles, columns, lines * LEGEND_LINE + 0.1
