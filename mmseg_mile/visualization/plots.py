# SPDX-License-Identifier: Apache-2.0
"""Plots of what a stream measured, laid out by matplotlib.

Without pyplot: no global state, no display, and the same numbers give the
same bytes.
"""
from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.evaluation.routing_log import RoutedImage
from mmseg_mile.files import PathLike

DPI = 150
# Looks of every plot, whatever a user's matplotlibrc asks for.
STYLE: Any = {
    'font.size': 9,
    'axes.titlesize': 11,
    'axes.labelsize': 10,
    'axes.axisbelow': True,
    'axes.edgecolor': '0.6',
    'grid.color': '0.9',
    'legend.fontsize': 9,
    'legend.frameon': False,
    'lines.markersize': 5,
    'savefig.bbox': None
}
# About how many letters fill an inch.
LETTERS = 13
MAX_NAME = 22
# More tasks than this cannot be told apart by their looks, and numbers in
# as many columns not be read; of more names every second one is written.
MAX_STYLED, MAX_NAMED = 24, 40
# Points of mIoU that a scale spans at least, or noise would look grave.
MIN_SPAN = 10
# Told apart with any common colour blindness (Okabe and Ito 2008, without
# black and yellow; wine and olive after Tol). Seven and eight have no common
# divisor: 56 pairs of colour and marker, neighbours differ in both.
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9',
           '#882255', '#7a7a2e')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')
RIGHT, WRONG = '#1a7f37', '#c62828'
OUT = 'out-of-distribution'


def new_figure(width: float, height: float) -> Figure:
    """White figure of ``width`` x ``height`` inches."""
    size = (width, height)
    return Figure(size, DPI, facecolor='white', layout='constrained')


@rc_context(STYLE)
def figure_bytes(figure: Figure, kind: str = 'png') -> bytes:
    """A figure as 'png' or 'jpeg'; the same one gives the same bytes."""
    stream = io.BytesIO()
    metadata = {'Software': None} if kind == 'png' else None
    figure.savefig(stream, format=kind, dpi=DPI, metadata=metadata)
    return stream.getvalue()


def save_figure(figure: Figure, path: PathLike) -> Path:
    """Write a figure as PNG; missing folders are created."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(figure_bytes(figure))
    return path


def task_styles(num_tasks: int) -> List[Tuple[str, str]]:
    """Colour and marker per task, in the stream's order.

    More than ``MAX_STYLED`` tasks get a sequence of colours by their place
    in the stream, and dots.
    """
    if num_tasks > MAX_STYLED:
        # the bright end of the map does not show on white
        places = np.linspace(0, 0.9, num_tasks)
        return [(to_hex(colormaps['viridis'](p)), 'o') for p in places]
    return [(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)])
            for i in range(num_tasks)]


def short_name(name: str, at_most: int = MAX_NAME) -> str:
    """A name, cut and marked by an ellipsis where it is long."""
    return name if len(name) <= at_most else f'{name[:at_most - 1]}\u2026'


def add_title(figure: Figure, title: str) -> None:
    """Write a title over a figure, on several lines if need be."""
    letters = int(0.7 * LETTERS * figure.get_figwidth())
    figure.suptitle(
        textwrap.fill(title, letters), fontsize=12, fontweight='bold')


def _run_title(results: StreamResults) -> str:
    return f'{results.method} on {results.stream}, seed {results.seed}'


# -- matrices -------------------------------------------------------------


@rc_context(STYLE)
def plot_score_matrix(results: StreamResults) -> Figure:
    """Heat maps of routed and oracle mIoU, side by side.

    Rows: after learning a task; columns: evaluated on a task. The frame on
    the diagonal marks the task just learned; what lies right of it is
    zero-shot. Cells that were not evaluated stay blank, and the oracle is
    left out where it was not evaluated at all.
    """
    titles = dict(routed='Routed (no task label)', oracle='Oracle (true task)')
    kinds = [
        kind for kind in titles
        if kind == 'routed' or not np.isnan(results.miou[kind]).all()
    ]
    # One scale for both, so that equal colours are equal scores.
    low, high = _wide_range([results.miou[kind] for kind in kinds])
    scale = ScalarMappable(Normalize(low, high), colormaps['viridis'])
    figure, panels = _matrix_figure(results.tasks, results.tasks, len(kinds))
    for axes, kind in zip(panels, kinds):
        matrix = results.miou[kind]
        _heat_map(axes, matrix, scale, _numbers(matrix, '{:.1f}'))
        for place in np.flatnonzero(~np.isnan(np.diagonal(matrix))) + 0.04:
            frame = Rectangle((place, place), 0.92, 0.92, fill=False, lw=1.2)
            axes.add_patch(frame)
        axes.set(title=titles[kind], xlabel='evaluated on')
    panels[0].set_ylabel('after learning')
    figure.colorbar(scale, ax=panels, label='mIoU (%)', pad=0.02)
    add_title(figure, _run_title(results))
    return figure


@rc_context(STYLE)
def plot_class_iou(results: StreamResults) -> Figure:
    """Heat map of classes (rows) and tasks (columns) after the last task.

    The right panel, where the oracle was evaluated, holds the points that
    each class would gain if every image went to its own task's expert;
    below zero, another expert did better.
    Blank cells: the task lacks the class, or its truth never shows it.
    """
    found = results.class_iou
    tasks = [name for name in results.tasks if found['routed'].get(name)]
    classes = list(dict.fromkeys(c for t in tasks for c in found['routed'][t]))
    routed, oracle = (
        np.array([[found[kind].get(t, {}).get(c, np.nan) for t in tasks]
                  for c in classes]) for kind in ('routed', 'oracle'))
    lost = oracle - routed
    both = not np.isnan(lost).all()
    figure, panels = _matrix_figure(classes, tasks, 1 + both)
    scale = ScalarMappable(Normalize(0, 100), colormaps['viridis'])
    _heat_map(panels[0], routed, scale, _numbers(routed, '{:.0f}'))
    panels[0].set(title='IoU, routed', ylabel='class')
    figure.colorbar(scale, ax=panels[0], label='IoU (%)')
    if both:
        # Orange loses by the routing, purple gains; both show to everyone.
        reach = max(MIN_SPAN / 2, float(np.nanmax(np.abs(lost))))
        change = ScalarMappable(Normalize(-reach, reach), colormaps['PuOr_r'])
        # Zeros stay empty, so that what routing costs stands out.
        _heat_map(panels[1], lost, change, _numbers(lost, '{:.1f}', True))
        panels[1].set_title('Lost to routing')
        figure.colorbar(
            change, ax=panels[1], label='oracle - routed (points of IoU)')
    for axes in panels:
        axes.set_xlabel('task')
    add_title(figure, _run_title(results))
    return figure


@rc_context(STYLE)
def plot_gate_confusion(results: StreamResults) -> Figure:
    """Heat map of true task against chosen expert.

    Colour is the share of the task's images, numbers are images.
    """
    counts = results.gate_confusion
    images = np.nansum(counts, axis=1, keepdims=True)
    share = 100 * counts / np.where(images > 0, images, np.nan)
    # The root makes one wrong image in a hundred visible.
    scale = ScalarMappable(PowerNorm(0.5, 0, 100), colormaps['Blues'])
    figure, (axes, ) = _matrix_figure(results.tasks, results.tasks, 1)
    _heat_map(axes, share, scale, _numbers(counts, '{:.0f}', True))
    right = 100 * results.gate_accuracy
    axes.set(
        title=f'Images per expert, {right:.2f} % right',
        xlabel='chosen expert',
        ylabel='true task')
    figure.colorbar(
        scale,
        ax=axes,
        label="% of the task's images",
        ticks=[0, 1, 5, 10, 25, 50, 100])
    add_title(figure, _run_title(results))
    return figure


def _wide_range(values: Sequence[np.ndarray]) -> Tuple[float, float]:
    """Least and largest per cent, ``MIN_SPAN`` apart or more."""
    known = np.concatenate([np.ravel(each) for each in values])
    known = known[~np.isnan(known)]
    low, high = (known.min(), known.max()) if known.size else (0, 100)
    if high - low < MIN_SPAN:
        low = min(max(0, (low + high - MIN_SPAN) / 2), 100 - MIN_SPAN)
        high = low + MIN_SPAN
    return float(low), float(high)


def _numbers(values: np.ndarray,
             form: str,
             without_zeros: bool = False) -> np.ndarray:
    """Texts of the cells of a matrix."""
    texts = np.vectorize(form.format)(values)
    zero = [form.format(value) for value in (0, -0.0)]
    return np.where(without_zeros & np.isin(texts, zero), '', texts)


def _matrix_figure(rows: Sequence[str], columns: Sequence[str],
                   num_panels: int) -> Tuple[Figure, List[Axes]]:
    """Panels beside each other that share the names of their rows."""
    cell = _cell(len(columns))
    wide = cell * len(columns)
    high = wide if len(rows) == len(columns) else max(
        2.2, 0.25 * min(len(rows), MAX_NAMED))
    figure = new_figure(1 + _inches(rows) + num_panels * (wide + 0.9),
                        1.3 + _inches(columns) + high)
    panels = figure.subplots(1, num_panels, sharey=True, squeeze=False)[0]
    for axes in panels:
        _name_ticks(axes, 'x', columns, 0.5, cell)
        _name_ticks(axes, 'y', rows, 0.5)
        axes.tick_params(length=0)
    return figure, list(panels)


def _cell(num_columns: int) -> float:
    """Inches that a column takes."""
    if num_columns > MAX_STYLED:
        return 9 / num_columns
    return max(2.2 / num_columns, 0.6 if num_columns < 9 else 0.45)


def _inches(names: Sequence[str]) -> float:
    """About as many inches as the longest name takes."""
    return max(len(short_name(name)) for name in names) / LETTERS


def _heat_map(axes: Axes, values: np.ndarray, scale: ScalarMappable,
              texts: np.ndarray) -> None:
    """Draw an (R, C) matrix as coloured cells; NaN stays blank."""
    num_rows, num_columns = values.shape
    many = num_columns > MAX_STYLED
    norm: Any = scale.norm
    # White lines keep neighbouring cells of one colour apart.
    axes.pcolormesh(
        np.ma.masked_invalid(values),
        cmap=scale.cmap,
        norm=norm,
        edgecolors='white',
        linewidth=0.3 if many else 1.2)
    axes.set_ylim(num_rows, 0)
    if many or num_rows > MAX_NAMED:
        return
    size = 9 if _cell(num_columns) > 0.5 else 7.5
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            red, green, blue, _ = scale.to_rgba(value)
            bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.45
            axes.text(
                column + 0.5,
                row + 0.5,
                texts[row, column],
                ha='center',
                va='center',
                fontsize=size,
                color='black' if bright else 'white')


def _name_ticks(axes: Axes,
                which: str,
                names: Sequence[str],
                offset: float = 0,
                room: float = 99) -> None:
    """Write names at an axis, upright where ``room`` inches are too few."""
    set_ticks = axes.set_xticks if which == 'x' else axes.set_yticks
    ticks = range(0, len(names), -(-len(names) // MAX_NAMED))
    labels = [short_name(names[i]) for i in ticks]
    size = 9 if len(names) <= MAX_STYLED else 6
    turn = 90 if _inches(names) > room else 0
    set_ticks([i + offset for i in ticks], labels, size=size, rotation=turn)


# -- curves ---------------------------------------------------------------


@rc_context(STYLE)
def plot_stream_curves(results: StreamResults) -> Figure:
    """mIoU of each task from when it is learned, and the mean of all seen.

    Solid lines are routed; where the true task's expert scores otherwise,
    a dashed line of the same colour shows it. The legend has the order of
    the scores at the end. More than ``MAX_STYLED`` tasks are faint lines
    that show the spread around the mean.
    """
    rows = results.num_finished_rows
    names = results.tasks[:rows]
    many = rows > MAX_STYLED
    wide, lines = 2.5 + min(6, 0.35 * rows), 3 if many else rows + 3
    figure = new_figure(wide + 2.2, max(3, 0.2 * lines) + _inches(names))
    axes = figure.subplots()
    for index, (colour, marker) in enumerate(task_styles(rows)):
        curves = [m[index:rows, index] for m in results.miou.values()]
        if many:
            axes.plot(range(index, rows), curves[0], color='0.75', lw=0.6)
        else:
            look: Dict[str, Any] = dict(color=colour, marker=marker)
            _plot_curve(axes, index, curves, short_name(names[index]), look)
    means = [
        np.array([m[i, :i + 1].mean() for i in range(rows)])
        for m in results.miou.values()
    ]
    look = dict(color='black', linewidth=3, marker='o' if rows == 1 else '')
    _plot_curve(axes, 0, means, 'mean of seen', look)
    handles: List[Any] = axes.get_legend_handles_labels()[0]
    handles.sort(key=lambda line: -line.get_ydata()[-1])
    if any(line.get_linestyle() == '--' for line in axes.lines):
        handles.append(Line2D([], [], color='0.3', ls='--', label='oracle'))
    low, high = _wide_range(
        [np.asarray(line.get_ydata()) for line in axes.lines])
    margin = 0.05 * (high - low)
    axes.set(
        xlim=(-0.5, rows - 0.5),
        ylim=(max(0, low - margin), min(100, high + margin)),
        xlabel='after learning',
        ylabel='mIoU (%)')
    _name_ticks(axes, 'x', names, room=wide / rows)
    axes.grid(axis='y')
    axes.spines[['top', 'right']].set_visible(False)
    figure.legend(handles=handles, loc='outside right center')
    add_title(figure, _run_title(results))
    return figure


def _plot_curve(axes: Axes, start: int, curves: Sequence[np.ndarray],
                name: str, look: Dict[str, Any]) -> None:
    """Draw the routed curve and, dashed where it differs, the oracle's."""
    routed, oracle = curves
    steps = np.arange(start, start + len(routed))
    # lines that lie closer are one line
    if (np.abs(oracle - routed) > 0.05).any():
        axes.plot(
            steps,
            oracle,
            color=look['color'],
            linestyle='--',
            linewidth=1.2,
            # one step is no line
            marker='_' if len(steps) == 1 else '')
    axes.plot(steps, routed, label=name, **look)


# -- map of the gate ------------------------------------------------------


def has_embedding_map(results: StreamResults,
                      images: Sequence[RoutedImage]) -> bool:
    """Whether distances to two or more different prototypes were measured."""
    names, known = _prototypes(results)
    return bool((known > 0).any()) and any(
        all(n in image.distances for n in names) for image in images)


@rc_context(STYLE)
def plot_embedding_map(results: StreamResults,
                       images: Sequence[RoutedImage]) -> Figure:
    """Map of the images and prototypes by the gate's distances.

    Colour and shape are the true task, large marks the prototypes. A red
    cross marks an image that went to another expert than its task's, a
    hollow mark one that the gate finds out-of-distribution.

    Args:
        results (StreamResults): Holds the distances between prototypes.
        images (Sequence[RoutedImage]): The routing log of the last row.
            Images without distances to every expert are left out.
    """
    names, between = _prototypes(results)
    images = [i for i in images if all(n in i.distances for n in names)]
    prototypes, places, shown = project_distances(
        between, np.array([[i.distances[n] for n in names] for i in images]))
    x, y = places.T
    ood = np.array([bool(image.ood) for image in images])
    # a task that is not learned yet has no right expert
    wrong = np.array(
        [i.task in names and i.expert not in (None, i.task) for i in images])
    tasks = results.tasks
    figure = new_figure(6.8, max(4.8, 0.2 * min(len(tasks), MAX_STYLED) + 1))
    axes = figure.subplots()
    _plot_prototypes(axes, tasks, dict(zip(names, prototypes)))
    size = 26 * min(1, max(0.25, 400 / len(images)))
    for task, (colour, marker) in zip(tasks, task_styles(len(tasks))):
        own = np.array([image.task == task for image in images])
        at, hollow = own & ~ood, own & ood
        axes.scatter(x[at], y[at], size, colour, marker=marker)
        axes.scatter(
            x[hollow], y[hollow], size, 'none', marker=marker, ec=colour)
        if own.any() and task not in names:
            label = f'{short_name(task)} (not learned)'
            axes.plot([], [], marker, color=colour, label=label)
    if wrong.any():
        axes.scatter(
            x[wrong],
            y[wrong],
            2 * size,
            WRONG,
            marker='x',
            label='wrong expert')
    if ood.any():
        axes.plot([], [], 'o', c='0.5', mfc='none', label=OUT)
    _finish_map(figure, axes, shown)
    add_title(figure, _run_title(results))
    return figure


def _plot_prototypes(axes: Axes, tasks: Sequence[str],
                     places: Dict[str, np.ndarray]) -> None:
    """Draw a large mark per learned task."""
    many = len(tasks) > MAX_STYLED
    for task, (colour, marker) in zip(tasks, task_styles(len(tasks))):
        if task in places:
            # of many tasks the first and the last explain the colours
            named = not many or task in (tasks[0], list(places)[-1])
            x, y = places[task]
            axes.scatter(
                x,
                y,
                30 if many else 110,
                colour,
                marker=marker,
                edgecolors='black',
                zorder=3,
                label=short_name(task) if named else None)


def _prototypes(results: StreamResults) -> Tuple[List[str], np.ndarray]:
    """Tasks whose K prototypes were measured, and their (K, K) distances."""
    distances = results.prototype_distances
    known = np.flatnonzero(~np.isnan(distances).all(axis=1))
    return [results.tasks[i] for i in known], distances[np.ix_(known, known)]


def _finish_map(figure: Figure, axes: Axes, shown: float) -> None:
    axes.set_aspect('equal', 'datalim')
    axes.margins(0.08)
    axes.tick_params(labelbottom=False, labelleft=False, length=0)
    axes.grid()
    axes.set_xlabel('first principal axis\n(both show '
                    f'{100 * shown:.0f} % of the variance)')
    axes.set_ylabel('second principal axis')
    figure.legend(
        loc='outside right center', title='large: prototype', markerscale=0.8)


def project_distances(
        prototypes: np.ndarray,
        images: np.ndarray) -> Tuple[np.ndarray, np.ndarray, float]:
    """Principal components of the squared distances to K prototypes.

    ``d_i^2 - mean_i d_i^2`` is linear in the place of a point, and the same
    for all that lies across the plane of the prototypes. So an image in the
    middle between two prototypes lies in their middle on the map.

    Args:
        prototypes (np.ndarray): (K, K) distances between prototypes.
        images (np.ndarray): (N, K) distances of images to prototypes.

    Returns:
        tuple: (K, 2) and (N, 2) places, and the share of the variance that
        they show.
    """
    squared = np.concatenate([prototypes, images])**2
    # two have but one difference: the plane is that of both distances
    if len(prototypes) > 2:
        squared -= squared.mean(axis=1, keepdims=True)
    squared -= squared.mean(axis=0)
    _, sizes, axes = np.linalg.svd(squared, full_matrices=False)
    places = squared @ axes[:2].T
    # the first prototype lies left and below, so that no sign is left open
    places *= np.where(places[0] > 0, -1, 1)
    shown = (sizes[:2]**2).sum() / (sizes**2).sum()
    return places[:len(prototypes)], places[len(prototypes):], float(shown)
