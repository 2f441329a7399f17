# SPDX-License-Identifier: Apache-2.0
"""Distances of embeddings to the prototypes of all tasks at once."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .prototypes import NUM_FOLDS, Prototypes, folds, pack, unpack

# Shape legend: B images, D embedding, E experts, M centroids of all experts


@dataclass(frozen=True)
class Whitening:
    """``x -> W x`` with ``W' W = P``, so that P's metric is Euclidean.

    Args:
        matrix (Tensor, optional): W, (D, D) float64; None for the identity.
        precision (Tensor): (D * (D + 1) / 2,) what weighs a packed scatter
            S in ``tr(P S)``: P's triangle, off the diagonal doubled.
    """
    matrix: Optional[Tensor]
    precision: Tensor

    @classmethod
    def of(cls, size: int, matrix: Optional[Tensor] = None) -> 'Whitening':
        """The whitening by a matrix of ``size`` rows, or by none."""
        eye = torch.eye(size, dtype=torch.float64)
        precision = eye if matrix is None else matrix.T @ matrix
        return cls(matrix, pack(2 * precision - precision.diag().diag()))

    def __call__(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, D); equal rows give equal rows, bit for bit."""
        if self.matrix is None:
            return x
        # row by row: in one product, rounding depends on the row's place,
        # which would break ties between experts and zero distances
        return torch.stack([self.matrix @ row.clone() for row in x])

    def mean_square(self, task: Prototypes) -> Tensor:
        """Mean squared distance of the task's own training images, ().

        It follows from the scatter alone, ``tr(P S_t) / n_t``, so it stays
        right when another task changes the shared covariance.
        """
        trace = torch.dot(self.precision, task.scatter.double())
        return (trace / task.num_images).clamp_min(0)


def shared_whitening(scatter: Tensor, num_images: float, size: int,
                     shrinkage: float) -> Whitening:
    """Whitening by the within-task covariance that all tasks share.

    ``S = sum_t scatter_t / sum_t n_t``, where a scatter includes the task's
    weighted drift, shrunk towards its diagonal:
    ``C = (1 - a) S + a diag(S) = L L'`` and ``W = L^-1``. Sums only, so
    tasks can be added, merged and removed one by one.

    Args:
        scatter (Tensor): (D * (D + 1) / 2,) packed sum over all tasks.
        num_images (float): Of all tasks.
        size (int): D.
        shrinkage (float): a in (0, 1].

    Raises:
        ValueError: If the covariance is too singular for this shrinkage.
    """
    covariance = unpack(scatter / num_images, size)
    diagonal = covariance.diagonal().clone()
    # a constant feature must not divide by zero
    floor = diagonal.mean().clamp_min(1e-12) * 1e-6
    covariance *= 1 - shrinkage
    covariance.diagonal().copy_(diagonal.clamp_min(floor))
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        raise ValueError(
            f'gate.shrinkage {shrinkage} is too small: the embeddings spread '
            f'in fewer than their {size} dimensions. Raise it; 0.1 is the '
            'default.')
    eye = torch.eye(size, dtype=torch.float64)
    return Whitening.of(
        size, torch.linalg.solve_triangular(factor, eye, upper=False))


@dataclass(frozen=True)
class _Prepared:
    """What a distance needs, made once for a set of tasks."""
    whitening: Whitening
    centroids: Tensor  # (M, D), whitened
    owners: Tensor  # (M,), index of each centroid's task
    typical: Tensor  # (E,)
    reach: Tensor  # (E,)


class PrototypeMetric:
    """Prototypes of all tasks under one metric.

    Adding a task costs one addition of its scatter. Whitened centroids and
    typical distances are made when a distance is asked for, once for all.

    Args:
        shrinkage (float, optional): Of the shared covariance; None for the
            Euclidean distance.
        drift_weight (float): What the drift of disturbed copies counts for
            in the covariance beside the spread of images. Defaults to 0,
            and has no effect without a covariance.
    """

    def __init__(self,
                 shrinkage: Optional[float],
                 drift_weight: float = 0.0) -> None:
        self.shrinkage = shrinkage
        self.drift_weight = 0.0 if shrinkage is None else drift_weight
        self._tasks: Dict[str, Prototypes] = {}
        self._scatter: Optional[Tensor] = None
        self._prepared: Optional[_Prepared] = None

    @property
    def names(self) -> Tuple[str, ...]:
        """tuple[str]: Tasks in the order in which they were added."""
        return tuple(self._tasks)

    def __getitem__(self, task: str) -> Prototypes:
        return self._tasks[task]

    def __setitem__(self, task: str, prototypes: Prototypes) -> None:
        if task in self._tasks:
            self._scatter = None
        elif self._scatter is not None:
            self._scatter = self._scatter + prototypes.within(
                self.drift_weight)
        self._tasks[task] = prototypes
        self._prepared = None

    def __delitem__(self, task: str) -> None:
        del self._tasks[task]
        # summed anew: subtraction would leave its rounding behind
        self._scatter = None
        self._prepared = None

    def distances(self, x: Tensor) -> Tensor:
        """Distance to the nearest centroid of each task.

        Args:
            x (Tensor): (B, D) float64.

        Returns:
            Tensor: (B, E).
        """
        ready = self._ready()
        to_centroids = _pairwise(ready.whitening(x), ready.centroids)
        nearest = to_centroids.new_full((len(x), len(self._tasks)), torch.inf)
        return nearest.scatter_reduce_(1, ready.owners.expand(len(x), -1),
                                       to_centroids, 'amin')

    @property
    def typical(self) -> Tensor:
        """Tensor: (E,) root mean squared distance of tasks' own images."""
        return self._ready().typical

    @property
    def reach(self) -> Tensor:
        """Tensor: (E,) see :class:`Prototypes`."""
        return self._ready().reach

    def between(self) -> Tensor:
        """(E, E) from a task's prototypes to the nearest of another one's.

        Averaged over the images that the prototypes stand for.
        """
        rows = [
            task.counts @ self.distances(task.centroids) / task.num_images
            for task in self._tasks.values()
        ]
        return torch.stack(rows) if rows else torch.zeros(0, 0)

    def mean_distances(self) -> Tensor:
        """(E, E) root mean square distance of a task's images to a task."""
        rows = []
        for typical, task in zip(self.typical, self._tasks.values()):
            apart = self.distances(task.centroids).square()
            rows.append(typical**2 + task.counts @ apart / task.num_images)
        return torch.stack(rows).sqrt()

    def relative_distances(self, x: Tensor, part: Prototypes) -> Tensor:
        """Distance to a task that is not added, over its typical one.

        Args:
            x (Tensor): (B, D) float64.
            part (Prototypes): Counts in the shared covariance meanwhile.

        Returns:
            Tensor: (B,).
        """
        whitening = self._whitening([part])
        nearest = _pairwise(whitening(x), whitening(part.centroids)).amin(1)
        typical = whitening.mean_square(part).clamp_min(1e-12).sqrt()
        return nearest / typical

    def calibrate(self, x: Tensor, num_prototypes: int, quantile: float,
                  drift: Tensor) -> Tensor:
        """Quantile of held-out over typical distance, by cross-fitting.

        Training images lie closer to prototypes they took part in than new
        images of the same task will, so each fold is measured against
        prototypes of the others. With fewer than two images nothing can be
        calibrated and nothing will be flagged.

        Args:
            x (Tensor): (N, D) float64, images of a task that is not added.
            num_prototypes (int): Of the task.
            quantile (float): In (0, 1].
            drift (Tensor): Of the task, see :class:`Prototypes`.

        Returns:
            Tensor: (), inf if unknown.
        """
        if len(x) < 2:
            return x.new_tensor(torch.inf)
        ratios = []
        for fold in folds(len(x), NUM_FOLDS):
            kept = torch.ones(len(x), dtype=torch.bool)
            kept[fold] = False
            part = Prototypes.of(x[kept], num_prototypes)
            part.drift = drift * (part.num_images / len(x))
            ratios.append(self.relative_distances(x[fold], part))
        return torch.cat(ratios).quantile(quantile)

    def _ready(self) -> _Prepared:
        if self._prepared is None:
            tasks = list(self._tasks.values())
            whitening = self._whitening()
            centroids = [whitening(t.centroids) for t in tasks]
            sizes = torch.tensor([len(c) for c in centroids])
            self._prepared = _Prepared(
                whitening, torch.cat(centroids),
                torch.arange(len(tasks)).repeat_interleave(sizes),
                torch.stack([whitening.mean_square(t) for t in tasks]).sqrt(),
                torch.stack([t.reach for t in tasks]))
        return self._prepared

    def _whitening(self, more: Sequence[Prototypes] = ()) -> Whitening:
        tasks = [*self._tasks.values(), *more]
        size = tasks[0].size
        if self.shrinkage is None:
            return Whitening.of(size)
        if self._scatter is None:
            self._scatter = torch.zeros(
                size * (size + 1) // 2, dtype=torch.float64)
            for task in self._tasks.values():
                self._scatter += task.within(self.drift_weight)
        scatter = self._scatter
        for task in more:
            scatter = scatter + task.within(self.drift_weight)
        return shared_whitening(scatter, sum(t.num_images for t in tasks),
                                size, self.shrinkage)


def _pairwise(x: Tensor, centroids: Tensor) -> Tensor:
    """(B, M) Euclidean; by differences, so that equal points give zero."""
    return torch.cdist(
        x, centroids, compute_mode='donot_use_mm_for_euclid_dist')
