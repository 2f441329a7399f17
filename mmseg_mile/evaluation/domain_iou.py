# SPDX-License-Identifier: Apache-2.0
"""Intersection over union of one task, compared by class name."""
from __future__ import annotations

from typing import Dict, List, Sequence, Tuple

import numpy as np
from numpy.typing import ArrayLike

# Shape legend: H x W label map, C classes of the task, P predicted classes


class DomainIoU:
    """Collects predictions on one task, whatever expert made them.

    Predictions may come in the label space of another task. They are
    compared by class *name*; a predicted class that the task lacks counts
    as wrong, never as ignored, and so does a pixel without a prediction.

    Args:
        classes (Sequence[str]): Label space of the task.
        ignore_index (int): Truth value that is left out, and predicted
            value that names no class. Defaults to 255.

    Attributes:
        confusion (np.ndarray): (C, C + 1) pixel counts, rows true class,
            columns predicted class; the last column holds predicted
            classes that the task lacks, and pixels without a prediction.

    Example:
        >>> iou = DomainIoU(('road', 'sky'))
        >>> iou.update(np.array([[0, 1]]), ('sky', 'car'),
        ...            np.array([[1, 0]]))
        >>> iou.class_iou()
        {'road': 0.0, 'sky': 100.0}
    """

    def __init__(self,
                 classes: Sequence[str],
                 ignore_index: int = 255) -> None:
        self.classes: Tuple[str, ...] = tuple(classes)
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise ValueError('classes must be one or more different names, '
                             f'got {self.classes}')
        self.ignore_index = ignore_index
        num_classes = len(self.classes)
        self.confusion = np.zeros((num_classes, num_classes + 1), np.int64)

    @classmethod
    def from_confusion(cls, classes: Sequence[str],
                       confusion: ArrayLike) -> 'DomainIoU':
        """Go on from counts as :attr:`confusion` gave them.

        Raises:
            ValueError: If the counts are not (C, C + 1).
        """
        known = cls(classes)
        counts = np.array(confusion, np.int64)
        if counts.shape != known.confusion.shape:
            raise ValueError(
                f'confusion of {len(known.classes)} classes must have shape '
                f'{known.confusion.shape}, got {counts.shape}')
        known.confusion = counts
        return known

    def update(self, prediction: np.ndarray, predicted_classes: Sequence[str],
               truth: np.ndarray) -> None:
        """Count one label map.

        Args:
            prediction (np.ndarray): (H, W) indices into
                ``predicted_classes``, or ``ignore_index``.
            predicted_classes (Sequence[str]): Label space of the
                prediction.
            truth (np.ndarray): (H, W) indices into ``classes`` or
                ``ignore_index``.

        Raises:
            ValueError: If the maps differ in shape or hold a value outside
                their label space.
        """
        if prediction.shape != truth.shape:
            raise ValueError(
                f'prediction of shape {prediction.shape} does not match '
                f'truth of shape {truth.shape}: bring the prediction to the '
                'size of the label map first.')
        counted = truth != self.ignore_index
        truth, prediction = truth[counted], prediction[counted]
        _check_range('truth', truth, self.classes,
                     f' or {self.ignore_index} for ignored pixels')
        # of more classes than that, it is one
        named = (prediction != self.ignore_index) | (
            len(predicted_classes) > self.ignore_index)
        unanswered, truth = truth[~named].astype(np.intp), truth[named]
        prediction = prediction[named]
        _check_range('prediction', prediction, predicted_classes)

        num_predicted = len(predicted_classes)
        pairs = truth.astype(np.intp) * num_predicted + prediction
        count_CP = np.bincount(
            pairs, minlength=len(self.classes) * num_predicted).reshape(
                len(self.classes), num_predicted)
        # Renaming C x P counts is far cheaper than renaming H x W pixels.
        position = {name: i for i, name in enumerate(self.classes)}
        lacking = len(self.classes)
        columns = [position.get(name, lacking) for name in predicted_classes]
        # Several predicted classes may fall into the last column.
        for column, count_C in zip(columns, count_CP.T):
            self.confusion[:, column] += count_C
        self.confusion[:, lacking] += np.bincount(
            unanswered, minlength=lacking)

    def merge(self, other: 'DomainIoU') -> None:
        """Add the counts of ``other``, e.g. of another process.

        Raises:
            ValueError: If ``other`` counts another label space.
        """
        mine = (self.classes, self.ignore_index)
        theirs = (other.classes, other.ignore_index)
        if mine != theirs:
            raise ValueError(
                'only counts of one label space can be merged, got classes '
                f'and ignore_index {mine} and {theirs}')
        self.confusion = self.confusion + other.confusion

    def areas(self) -> Dict[str, List[int]]:
        """Pixels hit, true and predicted, by class, where there are any."""
        counts = np.stack([
            np.diagonal(self.confusion),
            self.confusion.sum(axis=1), self.confusion[:, :-1].sum(axis=0)
        ], 1)
        return {
            name: row
            for name, row in zip(self.classes, counts.tolist()) if any(row)
        }

    def class_iou(self) -> Dict[str, float]:
        """IoU per class in per cent, ``TP / (TP + FP + FN)``.

        NaN for a class that is absent from the truth. Pixels of such a
        class that were predicted still count against the true class.
        """
        hits = np.diagonal(self.confusion).astype(float)
        true = self.confusion.sum(axis=1)
        predicted = self.confusion[:, :-1].sum(axis=0)
        union = np.where(true > 0, true + predicted - hits, np.nan)
        return dict(zip(self.classes, (100 * hits / union).tolist()))

    def miou(self) -> float:
        """Mean IoU in per cent over the classes that the truth holds.

        NaN if nothing was counted.
        """
        values = np.array(list(self.class_iou().values()))
        present = ~np.isnan(values)
        return float(values[present].mean()) if present.any() else float('nan')


def _check_range(name: str,
                 values: np.ndarray,
                 classes: Sequence[str],
                 also: str = '') -> None:
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f'{name} must be an integer label map, '
                         f'got dtype {values.dtype}')
    if not values.size:
        return
    wrong = [
        int(v) for v in (values.min(), values.max())
        if not 0 <= v < len(classes)
    ]
    if wrong:
        raise ValueError(
            f'{name} holds the value {wrong[0]}, allowed are 0 to '
            f'{len(classes) - 1} ({len(classes)} classes){also}. Check the '
            'label files and the classes of the dataset.')
