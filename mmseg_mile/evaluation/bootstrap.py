# SPDX-License-Identifier: Apache-2.0
"""Paired bootstrap: whether two methods differ beyond the choice of images."""
from __future__ import annotations

import posixpath
from typing import Dict, List, NamedTuple, Sequence, Tuple

import numpy as np

from .routing_log import RoutedImage

# Shape legend: S draws, N images, G sequences, C classes

NUM_DRAWS = 2000
_BOUNDS = (2.5, 97.5)

#: By task, the images of a run after its last task.
Images = Dict[str, List[RoutedImage]]


class Difference(NamedTuple):
    """Average mIoU of one method minus that of another, in points.

    Args:
        points (float): On the images as they are.
        low (float): 2.5 % quantile over the draws.
        high (float): 97.5 % quantile.
        by_seed (tuple[float]): Difference of each seed's runs.
    """
    points: float
    low: float
    high: float
    by_seed: Tuple[float, ...]

    @property
    def is_significant(self) -> bool:
        """bool: Neither images nor seeds disagree about the sign."""
        seeds = {np.sign(points) for points in self.by_seed}
        return self.low * self.high > 0 and len(seeds) == 1


def paired_bootstrap(ours: Sequence[Images],
                     theirs: Sequence[Images],
                     num_draws: int = NUM_DRAWS,
                     seed: int = 0) -> Difference:
    """Difference of two methods under resampled images.

    Within each task, sequences are drawn with replacement (Efron and
    Tibshirani 1993, ch. 8: what depends on each other is drawn together;
    frames of a drive do), the same ones for both methods and all seeds. Of
    a task with one sequence the images are drawn, which makes the interval
    too narrow there. mIoU follows from the summed areas of a draw, as it
    does from those of all images; a class that a draw does not show is left
    out of its mean.

    Args:
        ours (Sequence[Images]): Runs of a method, one per seed.
        theirs (Sequence[Images]): Runs of the other one with these seeds.
        num_draws (int): S. Defaults to 2000.
        seed (int): Of the draws. Defaults to 0.

    Raises:
        ValueError: If the runs were not scored on the same images, or their
            logs hold no areas.
    """
    generator = np.random.default_rng(seed)
    points, draws = [], []
    for task, reference in ours[0].items():
        files = [image.file for image in reference]
        weights_SN = _weights(reference, num_draws, generator)
        sides = []
        for runs in (ours, theirs):
            scores = []
            for run in runs:
                images = run.get(task, [])
                if [image.file for image in images] != files:
                    raise ValueError(
                        f'the runs are scored on other images of {task!r}: '
                        'compare runs of one stream and one data root')
                scores.append(_miou(_areas(images, task), weights_SN))
            sides.append(np.stack(scores))
        # the first row weighs every image once
        apart = sides[0] - sides[1]
        points.append(apart[:, 0])
        draws.append(apart[:, 1:].mean(0))
    by_seed = np.mean(points, axis=0)
    low, high = np.percentile(np.mean(draws, axis=0), _BOUNDS)
    return Difference(
        float(by_seed.mean()), float(low), float(high),
        tuple(by_seed.tolist()))


def _weights(images: Sequence[RoutedImage], num_draws: int,
             generator: np.random.Generator) -> np.ndarray:
    """(S + 1, N) how often each image counts; the first row is all ones."""
    names = [
        image.sequence or posixpath.dirname(image.file) for image in images
    ]
    groups = np.unique(names, return_inverse=True)[1]
    size = groups.max() + 1
    if size == 1:
        groups, size = np.arange(len(images)), len(images)
    counts = generator.multinomial(size, np.full(size, 1 / size), num_draws)
    return np.vstack([np.ones(len(images)), counts[:, groups]])


def _areas(images: Sequence[RoutedImage], task: str) -> np.ndarray:
    """(N, C, 3) pixels hit, true and predicted, of all classes seen."""
    if not any(image.areas for image in images):
        raise ValueError(f'the routing log of {task!r} holds no areas: it is '
                         'of an earlier version, evaluate the run again')
    classes = sorted({name for image in images for name in image.areas})
    return np.array([[image.areas.get(name, (0, 0, 0)) for name in classes]
                     for image in images], float)


def _miou(areas_NC3: np.ndarray, weights_SN: np.ndarray) -> np.ndarray:
    """(S,) per cent."""
    sums = weights_SN @ areas_NC3.reshape(len(areas_NC3), -1)
    hits, true, predicted = np.moveaxis(
        sums.reshape(len(sums), -1, areas_NC3.shape[2]), 2, 0)
    with np.errstate(invalid='ignore', divide='ignore'):
        iou = np.where(true > 0, hits / (true + predicted - hits), np.nan)
    return np.asarray(100 * np.nanmean(iou, axis=1))
