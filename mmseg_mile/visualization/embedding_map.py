# SPDX-License-Identifier: Apache-2.0
"""Where the gate sees the images, and where the experts' prototypes lie."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.evaluation.routing_log import RoutedImage
from .figure_file import PathLike, new_figure, save_figure
from .heat_map import add_title
from .landmark_map import LandmarkMap, landmark_map
from .task_styles import LABEL_SIZE, MAX_STYLED, short_name, task_styles
from .text_fit import text_inches

# Inches.
SIDE, LEFT, RIGHT, TITLE, CAPTION = 4.6, 0.65, 0.15, 0.4, 0.85
LEGEND_LINE, MARK = 0.2, 0.35
WRONG = '#c62828'
IMAGE_SIZE, PROTOTYPE_SIZE = 26, 110


def draw_embedding_map(results: StreamResults, images: Sequence[RoutedImage],
                       path: PathLike) -> Path:
    """Write :func:`figure_embedding_map` as a PNG.

    Returns:
        Path: The PNG that was written.

    Raises:
        ValueError: See there.
    """
    return save_figure(figure_embedding_map(results, images), path)


def has_embedding_map(results: StreamResults,
                      images: Sequence[RoutedImage]) -> bool:
    """Whether distances to two or more different prototypes were measured."""
    experts = _experts(results)
    known = results.prototype_distances[np.ix_(experts, experts)]
    return bool(_mapped_images(results, images)) and bool((known > 0).any())


def figure_embedding_map(results: StreamResults,
                         images: Sequence[RoutedImage]) -> Figure:
    """Map of the images and prototypes in the gate's own distances.

    Colour and shape are the true task, large marks the prototypes. A red
    cross marks an image that went to another expert than its task's, a
    hollow mark one that the gate finds out-of-distribution. Computed from distances
    alone, see :func:`landmark_map`; the caption says how much of the
    variance it shows.

    Args:
        results (StreamResults): Holds the distances between prototypes.
        images (Sequence[RoutedImage]): The routing log of the last row.
            Images without distances to every expert are left out.

    Raises:
        ValueError: If fewer than two prototypes or no image's distances
            were measured; :func:`has_embedding_map` tells.
    """
    if not has_embedding_map(results, images):
        raise ValueError(
            'gate.prototype_distances or the distances of the routing log '
            'hold too little: a map needs two different prototypes and one '
            'image. Gates without prototypes have no map')
    experts = _experts(results)
    shown = _mapped_images(results, images)
    names = [results.tasks[i] for i in experts]
    found = landmark_map(
        results.prototype_distances[np.ix_(experts, experts)],
        np.array([[image.distances[n] for n in names] for image in shown]))
    styles = dict(zip(results.tasks, task_styles(len(results.tasks))))
    legend = _legend_handles(results, shown, names, styles)
    wide = MARK + max(text_inches(h.get_label(), LABEL_SIZE) for h in legend)
    high = max(SIDE, LEGEND_LINE * len(legend) + 0.2)
    width = LEFT + SIDE + RIGHT + wide + 0.2
    height = CAPTION + high + TITLE
    figure = new_figure(width, height)
    axes = figure.add_axes(
        (LEFT / width, CAPTION / height, SIDE / width, high / height))
    _draw_images(axes, shown, found.images, styles, names)
    _draw_prototypes(axes, names, found.prototypes, styles)
    _finish_axes(axes, found, SIDE / high)
    figure.legend(
        handles=legend,
        loc='upper left',
        bbox_to_anchor=((LEFT + SIDE + RIGHT) / width, 1 - TITLE / height),
        frameon=False,
        fontsize=LABEL_SIZE,
        borderpad=0,
        borderaxespad=0,
        handletextpad=0.4)
    _write_caption(figure, found, LEFT + SIDE / 2)
    add_title(figure, [axes], f'{results.method} on {results.stream}, '
              f'seed {results.seed}')
    return figure


def _experts(results: StreamResults) -> List[int]:
    """Tasks whose prototypes were measured against those of others."""
    measured = ~np.isnan(results.prototype_distances)
    return np.flatnonzero(measured.any(axis=1)).tolist()


def _mapped_images(results: StreamResults,
                   images: Sequence[RoutedImage]) -> List[RoutedImage]:
    names = [results.tasks[i] for i in _experts(results)]
    return [
        image for image in images
        if names and all(n in image.distances for n in names)
    ]


def _is_wrong(image: RoutedImage, experts: Sequence[str]) -> bool:
    # a task that is not learned yet has no right expert
    return image.task in experts and image.expert not in (None, image.task)


def _draw_images(axes: Axes, images: Sequence[RoutedImage], places: np.ndarray,
                 styles: Dict[str, Tuple[str, str]],
                 experts: Sequence[str]) -> None:
    size = IMAGE_SIZE * min(1, max(0.25, 400 / len(images)))
    groups: Dict[Tuple[str, bool], List[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault((image.task, bool(image.ood)), []).append(index)
    for (task, ood), chosen in groups.items():
        colour, marker = styles[task]
        axes.scatter(
            places[chosen, 0],
            places[chosen, 1],
            s=size,
            marker=marker,
            facecolors='none' if ood else colour,
            edgecolors=colour if ood else 'white',
            linewidths=1 if ood else 0.3,
            zorder=2)
    wrong = [i for i, image in enumerate(images) if _is_wrong(image, experts)]
    if wrong:
        axes.scatter(
            places[wrong, 0],
            places[wrong, 1],
            s=2.5 * size,
            marker='x',
            color=WRONG,
            linewidths=1.3,
            zorder=3)


def _draw_prototypes(axes: Axes, names: Sequence[str], places: np.ndarray,
                     styles: Dict[str, Tuple[str, str]]) -> None:
    few = len(names) <= MAX_STYLED
    for name, (x, y) in zip(names, places):
        colour, marker = styles[name]
        axes.scatter(
            x,
            y,
            s=PROTOTYPE_SIZE if few else PROTOTYPE_SIZE / 4,
            marker=marker,
            facecolors=colour,
            edgecolors='black',
            linewidths=1.8 if few else 0.8,
            clip_on=False,
            zorder=4)


def _finish_axes(axes: Axes, found: LandmarkMap, ratio: float) -> None:
    """Limits around all points; a plane has one scale for both axes."""
    points = np.concatenate([found.prototypes, found.images])
    low, high = points.min(axis=0), points.max(axis=0)
    middle, reach = (low + high) / 2, 0.55 * (high - low)
    if found.is_line:
        axes.set_ylim(0, 1.1 * high[1] or 1)
        axes.set_ylabel('distance from that line', fontsize=10)
        axes.set_xlabel(
            'place on the line through the prototypes', fontsize=10)
    else:
        # the panel is wide / high = ratio
        half = max(reach[0], reach[1] * ratio)
        reach = np.array([half, half / ratio])
        axes.set_ylim(middle[1] - reach[1], middle[1] + reach[1])
        axes.set_xlabel(
            "first axis (unit of the gate's distance)", fontsize=10)
        axes.set_ylabel('second axis', fontsize=10)
    axes.set_xlim(middle[0] - reach[0], middle[0] + reach[0])
    axes.tick_params(labelsize=LABEL_SIZE)
    axes.spines[['top', 'right']].set_visible(False)
    axes.spines[:].set_color('0.6')
    axes.grid(color='0.93', linewidth=0.8)
    axes.set_axisbelow(True)


def _legend_handles(results: StreamResults, images: Sequence[RoutedImage],
                    experts: Sequence[str],
                    styles: Dict[str, Tuple[str, str]]) -> List[Line2D]:
    """What occurs: tasks, a prototype, out-of-distribution and wrong images."""

    def mark(label: str, **look: Any) -> Line2D:
        look = dict(dict(color='0.5', marker='o', markersize=6), **look)
        return Line2D([], [], linestyle='', label=label, **look)

    drawn = {*experts, *(image.task for image in images)}
    tasks = [name for name in results.tasks if name in drawn]
    few = len(results.tasks) <= MAX_STYLED
    handles = []
    for name in tasks if few else (tasks[0], tasks[-1]):
        label = short_name(name)
        if not few:
            label = f'{"first" if name == tasks[0] else "last"}: {label}'
        elif name not in experts:
            label += ' (not learned)'
        handles.append(
            mark(label, color=styles[name][0], marker=styles[name][1]))
    handles.append(
        mark(
            'prototype',
            markersize=10,
            markeredgecolor='black',
            markeredgewidth=1.6))
    if any(image.ood for image in images):
        handles.append(mark('ood', markerfacecolor='none'))
    if any(_is_wrong(image, experts) for image in images):
        handles.append(
            mark(
                'wrong expert',
                color=WRONG,
                marker='x',
                markersize=8,
                markeredgewidth=1.3))
    return handles


def _write_caption(figure: Figure, found: LandmarkMap, middle: float) -> None:
    width, height = figure.get_size_inches()
    what = 'place on the line shows' if found.is_line else 'map shows'
    caption = (f'The {what} {100 * found.prototype_share:.0f} % of the '
               "variance between the prototypes\nand "
               f"{100 * found.image_share:.0f} % of the images' variance")
    figure.text(
        middle / width,
        0.06 / height,
        caption,
        fontsize=8,
        color='0.3',
        ha='center',
        va='bottom')
