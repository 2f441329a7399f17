# SPDX-License-Identifier: Apache-2.0
"""Which experts the gate chose, as a picture."""
from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from mmseg_mile.evaluation.results import StreamResults
from .figure_file import PathLike, save_figure
from .heat_map import (add_title, draw_colour_bar, draw_heat_map,
                       heat_map_figure, label_axes)


def draw_gate_confusion(results: StreamResults, path: PathLike) -> Path:
    """Write :func:`figure_gate_confusion` as a PNG.

    Returns:
        Path: The PNG that was written.

    Raises:
        ValueError: If no routing was measured.
    """
    return save_figure(figure_gate_confusion(results), path)


def figure_gate_confusion(results: StreamResults) -> Figure:
    """Heat map of true task against chosen expert.

    Colour is the share of the task's images, numbers are images.

    Raises:
        ValueError: If no routing was measured.
    """
    if not results.has_gate:
        raise ValueError('gate.confusion holds no image: this run measured '
                         'no routing, so there is nothing to draw')
    counts = results.gate_confusion
    images = np.nansum(counts, axis=1, keepdims=True)
    share = 100 * counts / np.where(images > 0, images, np.nan)
    # Zeros stay empty, or they would hide the few wrong choices.
    texts = np.array([[f'{count:.0f}' if count > 0 else '' for count in line]
                      for line in counts])
    # The root makes one wrong image in a hundred visible.
    scale = ScalarMappable(PowerNorm(0.5, 0, 100), colormaps['Blues'])

    figure, (axes, ), (bar, ) = heat_map_figure(results.tasks, 1)
    draw_heat_map(axes, share, texts, results.tasks, scale)
    draw_colour_bar(figure, bar, scale, "% of the task's images")
    bar.set_yticks([0, 1, 5, 10, 25, 50, 100])
    axes.set_title(
        f'Images per expert, {100 * results.gate_accuracy:.2f} % '
        'right',
        fontsize=11)
    label_axes(figure, [axes], 'chosen expert', 'true task')
    add_title(figure, [axes], f'{results.method} on {results.stream}')
    return figure
