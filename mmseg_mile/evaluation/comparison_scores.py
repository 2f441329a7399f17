# SPDX-License-Identifier: Apache-2.0
"""Scores that need more than one run, or how a cost grows, as pure functions.

As in ``continual_scores``: no function edits its input, and a score whose
formula needs a value that is not known is NaN.
"""
from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Spread(NamedTuple):
    """Several seeds of one figure.

    Args:
        mean (float): Arithmetic mean.
        deviation (float): Sample standard deviation; NaN for one seed.
        num_seeds (int): Number of seeds.
    """
    mean: float
    deviation: float
    num_seeds: int


def spread(values: ArrayLike) -> Spread:
    """Mean and sample standard deviation of n seeds.

    ``sqrt(sum_s (x_s - mean)^2 / (n - 1))``, in the unit of the values. One
    seed says nothing of the spread, so its deviation is NaN; so are both
    where one of the seeds has no value, since a mean over fewer seeds would
    pass for that of all.

    Example: ``[50, 54]`` -> mean 52, deviation sqrt((4 + 4) / 1) = 2.83.

    Raises:
        ValueError: If there is no value.
    """
    seeds = np.array(values, dtype=float)
    if seeds.ndim != 1 or not seeds.size:
        raise ValueError('values must be a list of one or more seeds, got '
                         f'shape {seeds.shape}')
    deviation = float(seeds.std(ddof=1)) if len(seeds) > 1 else math.nan
    return Spread(float(seeds.mean()), deviation, len(seeds))


def delta_m(scores: ArrayLike, reference: ArrayLike) -> float:
    """Mean relative change against one model per task.

    ``(100 / T) sum_j (m_j - b_j) / b_j`` in per cent, higher is better and
    0 means as good as models that share nothing. ``m_j`` is the mIoU on task
    j at the end of the stream, ``b_j`` that of a model trained for task j
    alone. MDIL (Garg et al., WACV 2022), which reports the drop, hence with
    the other sign for a method that loses.

    Args:
        scores (ArrayLike): (T,) mIoU in per cent.
        reference (ArrayLike): (T,) mIoU in per cent.

    Returns:
        float: NaN if a value is not known or a reference is 0.

    Example: scores ``[45, 77]`` against ``[50, 70]`` -> (-10 + 10) / 2 = 0;
    ``[45, 70]`` -> -5.

    Raises:
        ValueError: If the shapes differ.
    """
    own, base = np.array(scores, dtype=float), np.array(reference, dtype=float)
    if own.ndim != 1 or own.shape != base.shape or not own.size:
        raise ValueError('scores and reference must hold one value per task, '
                         f'got shapes {own.shape} and {base.shape}')
    base = np.where(base == 0, np.nan, base)
    return float(100 * ((own - base) / base).mean())


def growth_per_task(kept: ArrayLike) -> float:
    """What each task after the first one adds, ``(k_T - k_1) / (T - 1)``.

    In the unit of ``kept``, lower is better; 0 for a method that keeps one
    model whatever comes. The first task is left out, as it pays for the
    network that all tasks share.

    Args:
        kept (ArrayLike): (T,) what has to be kept after each task.

    Returns:
        float: NaN for a single task.

    Example: ``[100, 110, 124]`` -> (124 - 100) / 2 = 12.
    """
    sizes = np.array(kept, dtype=float)
    if sizes.ndim != 1 or len(sizes) < 2:
        return math.nan
    return float((sizes[-1] - sizes[0]) / (len(sizes) - 1))
