# SPDX-License-Identifier: Apache-2.0
"""One image as the galleries show it."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

import numpy as np

from .class_colours import LabelSpace

IGNORE_INDEX = 255


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
        ood (bool, optional): Whether the gate found the image
            out-of-distribution; None where it does not say. Defaults to None.
        miou (float, optional): mIoU of this image in per cent. Defaults to
            None.
        oracle (np.ndarray, optional): (H, W) labels that the task's own
            expert predicts; None where that is the prediction or there is
            no such expert. Defaults to None.
        oracle_classes (Sequence[str]): Label space of ``oracle``. Defaults
            to ().
        oracle_palette (Sequence): Its colours. Defaults to ().
        oracle_miou (float, optional): mIoU of this image with the task's
            own expert, in per cent. Defaults to None.
        file (str): The image file, for captions and lists. Defaults to ''.

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
    ood: Optional[bool] = None
    miou: Optional[float] = None
    oracle: Optional[np.ndarray] = None
    oracle_classes: Sequence[str] = ()
    oracle_palette: Sequence[Sequence[int]] = ()
    oracle_miou: Optional[float] = None
    file: str = ''

    def __post_init__(self) -> None:
        size = self.image.shape[:2]
        for name, labels, (classes, _) in self.label_maps():
            if labels.shape != size:
                raise ValueError(f'{name} must have the size of the image, '
                                 f'{size}, got {labels.shape}')
            wrong = np.setdiff1d(labels, [*range(len(classes)), IGNORE_INDEX])
            if wrong.size:
                raise ValueError(
                    f'{name} holds the values {wrong.tolist()}, allowed are '
                    f'0 to {len(classes) - 1} and {IGNORE_INDEX}')

    def label_maps(self) -> List[Tuple[str, np.ndarray, LabelSpace]]:
        """Name, labels and label space of each map that there is."""
        maps = [('truth', self.truth, (self.truth_classes,
                                       self.truth_palette)),
                ('prediction', self.prediction, (self.prediction_classes,
                                                 self.prediction_palette))]
        if self.oracle is not None:
            maps.append(('oracle', self.oracle, (self.oracle_classes,
                                                 self.oracle_palette)))
        return maps

    @property
    def routing_cost(self) -> float:
        """float: Points of mIoU lost to the routing; NaN if unknown."""
        if self.miou is None or self.oracle_miou is None:
            return math.nan
        return self.oracle_miou - self.miou
