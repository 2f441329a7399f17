# SPDX-License-Identifier: Apache-2.0
"""Sufficient statistics of a task's embeddings, and what is made of them."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Sequence

import torch
from torch import Tensor

# Shape legend: N images, D embedding, K prototypes


@dataclass
class Prototypes:
    """Centroids, counts and scatter of one task.

    Args:
        centroids (Tensor): (K, D) float64.
        counts (Tensor): (K,) images per centroid.
        scatter (Tensor): (D, D), sum over images of the outer product of
            their offset from the nearest centroid.
        reach (Tensor): (), calibrated distance of the task's own images
            relative to their mean squared distance; inf if unknown.
    """
    centroids: Tensor
    counts: Tensor
    scatter: Tensor
    reach: Tensor

    @classmethod
    def of(cls, embeddings: Tensor, num_prototypes: int) -> 'Prototypes':
        """Statistics of (N, D) embeddings."""
        x = embeddings.double().cpu()
        centroids = k_means(x, num_prototypes)
        nearest = torch.cdist(x, centroids).argmin(1)
        counts = torch.bincount(nearest, minlength=len(centroids))
        offsets = x - centroids[nearest]
        return cls(centroids, counts.double(), offsets.T @ offsets,
                   torch.tensor(torch.inf, dtype=torch.float64))

    def state(self) -> Dict[str, Tensor]:
        """Tensors for the disk; of the scatter its upper triangle."""
        rows, columns = torch.triu_indices(*self.scatter.shape)
        return dict(
            centroids=self.centroids,
            counts=self.counts,
            scatter=self.scatter[rows, columns],
            reach=self.reach)

    @classmethod
    def from_state(cls, state: Dict[str, Tensor]) -> 'Prototypes':
        """Inverse of :meth:`state`."""
        size = state['centroids'].shape[1]
        upper = torch.zeros(size, size, dtype=torch.float64)
        rows, columns = torch.triu_indices(size, size)
        upper[rows, columns] = state['scatter']
        scatter = upper + upper.triu(1).T
        return cls(state['centroids'], state['counts'], scatter,
                   state['reach'])


def k_means(x: Tensor, num_clusters: int, num_steps: int = 50) -> Tensor:
    """Lloyd's algorithm from farthest-point seeds; no randomness.

    Args:
        x (Tensor): (N, D).
        num_clusters (int): Fewer where there are fewer distinct points.
        num_steps (int): Upper bound on the steps. Defaults to 50.

    Returns:
        Tensor: (K, D) means; for one cluster, the mean.
    """
    mean = x.mean(0, keepdim=True)
    if num_clusters == 1:
        return mean
    centroids = x[torch.cdist(x, mean).argmax()][None]
    while len(centroids) < num_clusters:
        gaps = torch.cdist(x, centroids).amin(1)
        if gaps.max() == 0:
            break
        centroids = torch.cat([centroids, x[gaps.argmax()][None]])
    for _ in range(num_steps):
        nearest = torch.cdist(x, centroids).argmin(1)
        means = torch.stack([
            x[nearest == k].mean(0) if (nearest == k).any() else centroids[k]
            for k in range(len(centroids))
        ])
        if torch.equal(means, centroids):
            break
        centroids = means
    return centroids


def shared_precision(tasks: Sequence[Prototypes], shrinkage: float) -> Tensor:
    """Inverse of the within-task covariance that all tasks share.

    ``S = sum_t scatter_t / sum_t n_t``, shrunk towards its diagonal:
    ``(1 - a) S + a diag(S)``. Sums only, so tasks can be added, merged and
    removed one by one.

    Args:
        tasks (Sequence[Prototypes]): Of all experts.
        shrinkage (float): a in (0, 1].

    Returns:
        Tensor: (D, D) float64.
    """
    total = sum(float(t.counts.sum()) for t in tasks)
    # one after the other: stacked, they would be in memory twice
    scatter = sum((t.scatter for t in tasks[1:]), tasks[0].scatter) / total
    diagonal = scatter.diagonal()
    # a constant feature must not divide by zero
    floor = diagonal.mean().clamp_min(1e-12) * 1e-6
    shrunk = (1 - shrinkage) * scatter
    shrunk.diagonal().copy_(diagonal.clamp_min(floor))
    return torch.linalg.inv(shrunk)


def squared_distances(x: Tensor, prototypes: Prototypes,
                      precision: Tensor) -> Tensor:
    """Mahalanobis distance, squared, to a task's nearest centroid.

    Args:
        x (Tensor): (N, D) float64.
        prototypes (Prototypes): Of the task.
        precision (Tensor): (D, D).

    Returns:
        Tensor: (N,).
    """
    offsets = x[:, None] - prototypes.centroids[None]
    return torch.einsum('nkd,de,nke->nk', offsets, precision,
                        offsets).amin(1).clamp_min(0)


def folds(num_images: int, num_folds: int) -> List[Tensor]:
    """Interleaved index sets for cross-fitting."""
    indices = torch.arange(num_images)
    return [indices[k::num_folds] for k in range(min(num_folds, num_images))]
