# SPDX-License-Identifier: Apache-2.0
"""How far an image lies outside of a task, in units of the task's spread."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Dict, Tuple

import torch
from torch import Tensor

from .prototypes import NUM_FOLDS, Prototypes, runs, unpack

# Shape legend: B images, N images of a task, D embedding, K prototypes
# Of D * D values each.
_NUM_KEPT = 64


@dataclass(frozen=True)
class OwnSpread:
    """Distances to one task in units of the spread of its own images.

    The routing's covariance is shared, so that tasks can be compared; here
    one task is asked alone, and the directions in which it varies little
    are what gives a stranger away. Nothing of another task enters: what an
    expert takes for its own stays the same whichever experts come and go.

    Args:
        matrix (Tensor): (D, D) float64, W with ``W' W`` the inverse of the
            shrunk covariance.
        centroids (Tensor): (K, D) float64.
    """
    matrix: Tensor
    centroids: Tensor

    @classmethod
    def of(cls, task: Prototypes) -> 'OwnSpread':
        """The spread that a task's scatter tells.

        With ``S = scatter / (N - K)`` and its correlations R, the inverse
        is that of ``diag(S)^1/2 ((1 - a) R + a I) diag(S)^1/2``, where a is
        :func:`oas_shrinkage`: the fewer images, the less is made of how
        features go together.
        """
        centroids = task.centroids
        degrees = max(1.0, task.num_images - len(centroids))
        covariance = unpack(task.scatter.double() / degrees, task.size)
        variance = covariance.diagonal()
        # a constant feature must not divide by zero
        floor = variance.mean().clamp_min(1e-12) * 1e-6
        deviation = variance.clamp_min(floor).sqrt()
        correlation = covariance / deviation / deviation[:, None]
        correlation.fill_diagonal_(1)
        correlation *= 1 - oas_shrinkage(correlation, task.num_images)
        correlation.fill_diagonal_(1)
        factor = torch.linalg.cholesky(correlation)
        eye = torch.eye(task.size, dtype=torch.float64)
        inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
        return cls(inverse / deviation, centroids)

    def distances(self, x: Tensor) -> Tensor:
        """Mahalanobis distance to the nearest centroid.

        Args:
            x (Tensor): (B, D) float64.

        Returns:
            Tensor: (B,), of an image the same in any batch.
        """
        # row by row: in one product, rounding depends on the row's place
        return torch.stack([
            ((row - self.centroids) @ self.matrix.T).square().sum(1).amin()
            for row in x
        ]).sqrt()


class OwnSpreads:
    """Spreads of the tasks asked for last.

    A spread follows from what is kept of a task anyway, at the cost of a
    matrix's inverse; those in use are kept at hand, not those of hundreds
    of experts.
    """

    def __init__(self) -> None:
        self._kept: Dict[str, OwnSpread] = {}

    def of(self, name: str, task: Prototypes) -> OwnSpread:
        """The spread of a task, made if need be."""
        spread = self._kept.pop(name, None)
        # the one used last stands last
        self._kept[name] = OwnSpread.of(task) if spread is None else spread
        if len(self._kept) > _NUM_KEPT:
            del self._kept[next(iter(self._kept))]
        return self._kept[name]

    def forget(self, name: str) -> None:
        """Of a task that is gone or was learned anew."""
        self._kept.pop(name, None)


def oas_shrinkage(correlation: Tensor, num_images: float) -> float:
    """Share of the identity that estimates a correlation matrix best.

    Oracle approximating shrinkage (Chen, Wiesel, Eldar and Hero 2010, eq.
    23) of a covariance towards ``tr(S) / D`` times the identity. Applied to
    correlations, whose target it leaves at 1, so that features of any unit
    count alike; the paper's is of the covariance itself. At least 0.1 %,
    which keeps features that depend on each other invertible.

    Args:
        correlation (Tensor): (D, D), S.
        num_images (float): It was computed from.

    Returns:
        float: In (0, 1]; 1 for uncorrelated features or very few images.
    """
    size = len(correlation)
    square = float(correlation.square().sum())
    trace_square = float(correlation.trace())**2
    above = (1 - 2 / size) * square + trace_square
    below = (num_images + 1 - 2 / size) * (square - trace_square / size)
    return 1.0 if above >= below else max(1e-3, above / below)


def calibrate(x: Tensor, num_prototypes: int,
              quantile: float) -> Tuple[Tensor, Tensor]:
    """What distances new images of a task will have, by cross-fitting.

    Images lie closer to a fit that they took part in than new ones will, so
    each fold is measured against the fit of the others. Folds are runs of
    neighbours, see :func:`runs`. Of N distances the limit is the
    ``ceil((N + 1) quantile)``-th smallest, or the largest: it keeps that
    share of new images on average where they come as the folds do
    (split conformal prediction), for fewer than ``1 / (1 - quantile)``
    images a little less.

    Args:
        x (Tensor): (N, D) float64, of the task's images in their order.
        num_prototypes (int): K.
        quantile (float): Share of new images that should be kept.

    Returns:
        tuple[Tensor, Tensor]: (), median and limit of the distances. With
        fewer than two images nothing can be calibrated: 0 and inf.
    """
    if len(x) < 2:
        return x.new_zeros(()), x.new_tensor(torch.inf)
    parts = []
    for fold in runs(len(x), NUM_FOLDS):
        kept = torch.ones(len(x), dtype=torch.bool)
        kept[fold] = False
        fitted = OwnSpread.of(Prototypes.of(x[kept], num_prototypes))
        parts.append(fitted.distances(x[fold]))
    distances = torch.cat(parts).sort().values
    rank = min(len(x), math.ceil((len(x) + 1) * quantile))
    return distances.median(), distances[rank - 1]


def unfamiliarity(distances: Tensor, usual: Tensor, limit: Tensor) -> Tensor:
    """``log(d / usual) / log(limit / usual)``.

    On this scale a new image of the task lies at 0 in the median and below 1
    as often as was asked for, however widely distances of the task vary.

    Args:
        distances (Tensor): (B,), d.
        usual (Tensor): (), median distance of new images of the task.
        limit (Tensor): (), the distance up to which it takes images, not
            below ``usual``.

    Returns:
        Tensor: (B,), above 1 where ``d > limit``.
    """
    tiny = torch.finfo(distances.dtype).tiny
    low, high = usual.clamp_min(tiny).log(), limit.clamp_min(tiny).log()
    # of equal images both are one, and the least step beyond is a stranger
    span = (high - low).clamp_min(1e-9)
    return (distances.clamp_min(tiny).log() - low) / span
