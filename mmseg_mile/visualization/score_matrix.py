# SPDX-License-Identifier: Apache-2.0
"""The score matrices of a run as a picture."""
from __future__ import annotations

from pathlib import Path
from typing import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mmseg_mile.evaluation.results import StreamResults
from .figure_file import PathLike, save_figure
from .heat_map import (add_title, draw_colour_bar, draw_heat_map,
                       heat_map_figure, label_axes)

TITLES = dict(routed='Routed (no task label)', oracle='Oracle (true task)')
# Points of mIoU that the colours span at least, or noise would look grave.
MIN_SPAN = 10


def draw_score_matrix(results: StreamResults, path: PathLike) -> Path:
    """Write :func:`figure_score_matrix` as a PNG.

    Returns:
        Path: The PNG that was written.
    """
    return save_figure(figure_score_matrix(results), path)


def figure_score_matrix(results: StreamResults) -> Figure:
    """Heat maps of routed and oracle mIoU, side by side.

    Rows: after learning a task; columns: evaluated on a task. The frame on
    the diagonal marks the task just learned; what lies right of it is
    zero-shot. Cells that were not evaluated stay blank, and the oracle is
    left out where it was not evaluated at all.
    """
    kinds = [
        kind for kind in TITLES
        if kind == 'routed' or not np.isnan(results.miou[kind]).all()
    ]
    # One scale for both, so that equal colours are equal scores.
    scale = _colour_scale([results.miou[kind] for kind in kinds])
    figure, panels, (bar, ) = heat_map_figure(results.tasks, len(kinds))
    for axes, kind in zip(panels, kinds):
        matrix = results.miou[kind]
        texts = np.array([[f'{v:.1f}' for v in line] for line in matrix])
        draw_heat_map(axes, matrix, texts, results.tasks, scale)
        _frame_diagonal(axes, matrix)
        axes.set_title(TITLES[kind], fontsize=11)
        axes.tick_params(labelleft=axes is panels[0])
    label_axes(figure, panels, 'evaluated on', 'after learning')
    draw_colour_bar(figure, bar, scale, 'mIoU (%)')
    add_title(figure, panels, f'{results.method} on {results.stream}, '
              f'seed {results.seed}')
    return figure


def _colour_scale(matrices: Sequence[np.ndarray]) -> ScalarMappable:
    every = np.concatenate([matrix.ravel() for matrix in matrices])
    seen = every[~np.isnan(every)]
    low, high = (seen.min(), seen.max()) if seen.size else (0, 100)
    if high - low < MIN_SPAN:
        low = min(max(0, (low + high - MIN_SPAN) / 2), 100 - MIN_SPAN)
        high = low + MIN_SPAN
    return ScalarMappable(Normalize(low, high), colormaps['viridis'])


def _frame_diagonal(axes: Axes, matrix: np.ndarray) -> None:
    for index in np.flatnonzero(~np.isnan(np.diagonal(matrix))):
        axes.add_patch(
            Rectangle((index - 0.46, index - 0.46),
                      0.92,
                      0.92,
                      fill=False,
                      edgecolor='black',
                      linewidth=1.2))
