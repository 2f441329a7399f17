# SPDX-License-Identifier: Apache-2.0
"""Rows of image, ground truth and prediction with the chosen expert."""
from __future__ import annotations

from pathlib import Path
from typing import Sequence

from matplotlib.figure import Figure

from .figure_file import PathLike, save_figure
from .gallery import (Column, expert_caption, figure_gallery, ood_caption,
                      score_caption)
from .panel import Panel

COLUMNS = (Column('Image', 'image',
                  left=ood_caption), Column('Ground truth', 'truth'),
           Column(
               'Prediction',
               'prediction',
               left=lambda p: expert_caption(p.task, p.expert),
               right=lambda p: score_caption(p.miou)))


def draw_prediction_gallery(panels: Sequence[Panel], path: PathLike) -> Path:
    """Write :func:`figure_prediction_gallery` as a PNG.

    Returns:
        Path: The PNG that was written.

    Raises:
        ValueError: If there is no panel.
    """
    return save_figure(figure_prediction_gallery(panels), path)


def figure_prediction_gallery(panels: Sequence[Panel]) -> Figure:
    """One row per panel and a legend of the classes that occur.

    Colours follow class names. Under a prediction stands the chosen expert,
    green where it is the image's own task and red where it is not.

    Raises:
        ValueError: If there is no panel.
    """
    return figure_gallery(panels, COLUMNS)
