# SPDX-License-Identifier: Apache-2.0
"""The images where routing cost most, as they would have been at best."""
from __future__ import annotations

from pathlib import Path
from typing import Optional, Sequence

from matplotlib.figure import Figure

from .figure_file import PathLike, save_figure
from .gallery import (WRONG, Caption, Column, expert_caption, figure_gallery,
                      ood_caption, score_caption)
from .panel import Panel


def _lost(panel: Panel) -> Optional[Caption]:
    return Caption(f'{panel.routing_cost:.1f} points lost', WRONG, True)


COLUMNS = (Column('Image', 'image', left=ood_caption,
                  right=_lost), Column('Ground truth', 'truth'),
           Column(
               'As routed',
               'prediction',
               left=lambda p: expert_caption(p.task, p.expert),
               right=lambda p: score_caption(p.miou)),
           Column(
               'By its own expert',
               'oracle',
               left=lambda p: expert_caption(p.task, p.task),
               right=lambda p: score_caption(p.oracle_miou)))


def draw_routing_cost(panels: Sequence[Panel], path: PathLike) -> Path:
    """Write :func:`figure_routing_cost` as a PNG.

    Returns:
        Path: The PNG that was written.

    Raises:
        ValueError: See there.
    """
    return save_figure(figure_routing_cost(panels), path)


def figure_routing_cost(panels: Sequence[Panel]) -> Figure:
    """Image, truth, routed prediction and that of the task's own expert.

    The panels stand in the order given; under each image stand the points
    of mIoU that its routing cost.

    Raises:
        ValueError: If there is no panel, or one lacks what the own expert
            predicted.
    """
    for index, panel in enumerate(panels):
        if panel.oracle is None:
            raise ValueError(
                f'panels[{index}].oracle is None, an image of task '
                f'{panel.task!r}: give only images that another prediction '
                "of the task's own expert exists for")
    return figure_gallery(panels, COLUMNS)
