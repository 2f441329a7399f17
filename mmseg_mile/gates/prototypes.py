# SPDX-License-Identifier: Apache-2.0
"""Sufficient statistics of a task's embeddings."""
from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Dict, Sequence

import torch
from torch import Tensor

# Shape legend: N images, L views of each, D embedding, K prototypes


def _infinite() -> Tensor:
    return torch.tensor(torch.inf, dtype=torch.float64)


@dataclass
class Prototypes:
    """Centroids, counts and scatter of one task.

    Sums over images only: those of several tasks, or of several processes,
    add up, and can be taken away again.

    Args:
        centroids (Tensor): (K, D) float64.
        counts (Tensor): (K,) images per centroid.
        scatter (Tensor): (D * (D + 1) / 2,) upper triangle, row by row, of
            the sum over images of the outer product of their offset from
            the nearest centroid. In float32: it is a sample's spread, known
            to a few per cent, and most of what a gate stores.
        perturbation (Tensor): (D * (D + 1) / 2,), packed like ``scatter``:
            the sum over images of the outer product of how far an augmented
            view moves, the mean over views; float32. Empty if unknown.
        median_distance (Tensor): (), median distance of new images of the
            task in units of its own spread; inf if it was not calibrated.
        max_distance (Tensor): (), the distance that most of them keep
            within; inf likewise.
    """
    centroids: Tensor
    counts: Tensor
    scatter: Tensor
    perturbation: Tensor = field(default_factory=lambda: torch.zeros(0))
    median_distance: Tensor = field(default_factory=_infinite)
    max_distance: Tensor = field(default_factory=_infinite)

    @classmethod
    def of(cls, embeddings: Tensor, num_prototypes: int) -> 'Prototypes':
        """Statistics of a task.

        Args:
            embeddings (Tensor): (N, D), or (N, L, D) with views, the
                image's own first.
            num_prototypes (int): K, see :func:`k_means`.
        """
        x = own_embeddings(embeddings).double().cpu()
        centroids = k_means(x, num_prototypes)
        nearest = torch.cdist(x, centroids).argmin(1)
        counts = torch.bincount(nearest, minlength=len(centroids)).double()
        offsets = x - centroids[nearest]
        found = cls(centroids, counts, pack(offsets.T @ offsets).float())
        if embeddings.dim() == 3 and embeddings.shape[1] > 1:
            views = embeddings[:, 1:].double().cpu()
            moves = (views - x[:, None]).flatten(0, 1)
            found.perturbation = pack(moves.T @ moves / views.shape[1]).float()
        return found

    def within(self, perturbation_weight: float) -> Tensor:
        """(D * (D + 1) / 2,) scatter and weighted perturbation, float64."""
        scatter = self.scatter.double()
        if perturbation_weight and self.perturbation.numel():
            scatter = scatter + (
                perturbation_weight * self.perturbation.double())
        return scatter

    @property
    def size(self) -> int:
        """int: D."""
        return self.centroids.shape[1]

    @property
    def num_images(self) -> float:
        """float: N."""
        return float(self.counts.sum())

    def state(self) -> Dict[str, Tensor]:
        """Tensors for the disk."""
        return dict(vars(self))

    @classmethod
    def from_state(cls, state: Dict[str, Tensor]) -> 'Prototypes':
        """Inverse of :meth:`state`.

        Raises:
            ValueError: If it is the state of something else.
        """
        names = sorted(part.name for part in fields(cls))
        if sorted(state) != names:
            raise ValueError(f'they hold {sorted(state)[:6]}, not {names}')
        return cls(**state)


def own_embeddings(embeddings: Tensor) -> Tensor:
    """(N, D) of the images themselves, of (N, D) or of (N, L, D)."""
    return embeddings[:, 0] if embeddings.dim() == 3 else embeddings


def pack(symmetric: Tensor) -> Tensor:
    """(D, D) -> its upper triangle, (D * (D + 1) / 2,), row by row."""
    rows, columns = torch.triu_indices(*symmetric.shape)
    return symmetric[rows, columns]


def unpack(triangle: Tensor, size: int) -> Tensor:
    """Inverse of :func:`pack`; ``size`` is D."""
    rows, columns = torch.triu_indices(size, size)
    symmetric = triangle.new_zeros(size, size)
    symmetric[rows, columns] = triangle
    symmetric[columns, rows] = triangle
    return symmetric


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


def merge_prototypes(states: Sequence[Dict[str, Tensor]],
                     pooled: bool = False) -> Dict[str, Tensor]:
    """Statistics of several tasks as those of one.

    Counts, means and scatter of all images follow from those of the parts.
    By default every centroid stays a centroid, so that an image is as near
    to the merged task as to the nearest of its parts. ``pooled`` makes one
    mean of them, which is the fit of a gate with one prototype per task to
    the images of all parts together. What was calibrated is no sum: that of
    the part with the widest limit is kept.

    Args:
        states (Sequence[dict[str, Tensor]]): As gates store them; all empty
            for gates without statistics.
        pooled (bool): Whether one centroid is wanted.

    Returns:
        dict[str, Tensor]: Statistics for the same gate.

    Raises:
        ValueError: If they are of no known form, or of different sizes.
    """
    if not any(states):
        return {}
    try:
        parts = [Prototypes.from_state(state) for state in states]
    except ValueError as error:
        raise ValueError(
            f'the statistics of these experts cannot be merged: {error}. '
            'Merge experts whose gate is a PrototypeGate.') from error
    sizes = sorted({part.size for part in parts})
    if len(sizes) > 1:
        raise ValueError(f'the prototypes of these experts have {sizes} '
                         'values: they come from different embedders, and '
                         'no gate could compare them.')
    counts = torch.cat([part.counts for part in parts])
    centroids = torch.cat([part.centroids for part in parts])
    scatter = torch.stack([part.scatter.double() for part in parts]).sum(0)
    if pooled:
        mean = counts @ centroids / counts.sum()
        offsets = centroids - mean
        scatter = scatter + pack(offsets.T @ (counts[:, None] * offsets))
        centroids, counts = mean[None], counts.sum()[None]
    moved = [part.perturbation.double() for part in parts]
    known = all(part.numel() for part in moved)
    perturbation = torch.stack(moved).sum(0) if known else torch.zeros(0)
    # a part of one image was not calibrated: its limit is infinite
    calibrated = [p for p in parts if p.max_distance.isfinite()] or parts
    widest = max(calibrated, key=lambda part: float(part.max_distance))
    return Prototypes(centroids, counts, scatter.float(), perturbation.float(),
                      widest.median_distance, widest.max_distance).state()
