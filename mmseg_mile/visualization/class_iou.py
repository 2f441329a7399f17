# SPDX-License-Identifier: Apache-2.0
"""The IoU of every class of every task, and what routing takes from it."""
from __future__ import annotations

from pathlib import Path
from typing import List

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from mmseg_mile.evaluation.results import StreamResults
from .figure_file import PathLike, save_figure
from .heat_map import (add_title, draw_colour_bar, draw_heat_map,
                       heat_map_figure, label_axes)

TITLES = ('IoU, routed', 'Lost to routing')
# Points that the colours of the difference reach at least.
MIN_REACH = 5
# Less is written as nothing, so that what routing costs stands out.
NOTHING = 0.05


def draw_class_iou(results: StreamResults, path: PathLike) -> Path:
    """Write :func:`figure_class_iou` as a PNG.

    Returns:
        Path: The PNG that was written.

    Raises:
        ValueError: If no IoU per class was measured.
    """
    return save_figure(figure_class_iou(results), path)


def figure_class_iou(results: StreamResults) -> Figure:
    """Heat map of classes (rows) and tasks (columns) after the last task.

    The right panel, where the oracle was evaluated, holds the points that
    each class would gain if every image went to its own task's expert;
    below zero, another expert did better.
    Blank cells: the task lacks the class, or its truth never shows it.

    Raises:
        ValueError: If no IoU per class was measured.
    """
    tasks = [name for name in results.tasks if results.class_iou['routed']
             .get(name)]  # yapf: disable
    if not tasks:
        raise ValueError('class_iou.routed is empty: no row was evaluated '
                         'yet, so there is nothing to draw')
    classes = _classes(results, tasks)
    routed, oracle = (
        _matrix(results, kind, tasks, classes)
        for kind in ('routed', 'oracle'))
    gains = oracle - routed
    both = not np.isnan(gains).all()
    figure, panels, bars = heat_map_figure(
        tasks, 1 + both, rows=classes, bar_each=both)
    scale = ScalarMappable(Normalize(0, 100), colormaps['viridis'])
    texts = np.array([[f'{v:.0f}' for v in row] for row in routed])
    draw_heat_map(panels[0], routed, texts, tasks, scale, classes)
    draw_colour_bar(figure, bars[0], scale, 'IoU (%)')
    if both:
        # Orange loses by the routing, purple gains; both show to everyone.
        reach = max(MIN_REACH, float(np.nanmax(np.abs(gains))))
        change = ScalarMappable(Normalize(-reach, reach), colormaps['PuOr_r'])
        texts = np.array(
            [[f'{v:.1f}' if abs(v) >= NOTHING else '' for v in row]
             for row in gains])
        draw_heat_map(panels[1], gains, texts, tasks, change, classes)
        draw_colour_bar(figure, bars[1], change,
                        'oracle - routed (points of IoU)')
        panels[1].tick_params(labelleft=False)
    for axes, title in zip(panels, TITLES):
        axes.set_title(title, fontsize=11)
    label_axes(figure, panels, 'task', 'class')
    add_title(figure, panels, f'{results.method} on {results.stream}, '
              f'seed {results.seed}')
    return figure


def _classes(results: StreamResults, tasks: List[str]) -> List[str]:
    """Every class of the tasks, in the order in which they come."""
    return list(
        dict.fromkeys(name for task in tasks
                      for name in results.class_iou['routed'][task]))


def _matrix(results: StreamResults, kind: str, tasks: List[str],
            classes: List[str]) -> np.ndarray:
    """(classes, tasks) IoU, NaN where there is none."""
    found = results.class_iou[kind]
    return np.array([[found.get(t, {}).get(c, np.nan) for t in tasks]
                     for c in classes])
