# SPDX-License-Identifier: Apache-2.0
"""Sufficient statistics of a task's embeddings, and what is made of them."""
from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Dict, List

import torch
from torch import Tensor

# Shape legend: N images, D embedding, K prototypes
#: Of images that prototypes are calibrated with.
NUM_FOLDS = 5


def _unknown() -> Tensor:
    return torch.tensor(torch.nan, dtype=torch.float64)


@dataclass
class Prototypes:
    """Centroids, counts and scatter of one task.

    Args:
        centroids (Tensor): (K, D) float64.
        counts (Tensor): (K,) images per centroid.
        scatter (Tensor): (D * (D + 1) / 2,) upper triangle, row by row, of
            the sum over images of the outer product of their offset from
            the nearest centroid. In float32: it is a sample's spread, known
            to a few per cent, and most of what a gate stores.
        reach (Tensor): (), calibrated distance of the task's own images
            relative to their mean squared distance; inf if unknown.
        usual (Tensor): (), median distance of new images of the task in
            units of its own spread, see :func:`own_spread.calibrate`; NaN
            in libraries from before it was calibrated.
        limit (Tensor): (), the distance that most of them keep within; NaN
            likewise.
        drift (Tensor): (D * (D + 1) / 2,), packed like ``scatter``: the sum
            over images of the outer product of how far a disturbed copy
            moves, the mean over copies; float32. Empty if unknown.
    """
    centroids: Tensor
    counts: Tensor
    scatter: Tensor
    reach: Tensor
    usual: Tensor = field(default_factory=_unknown)
    limit: Tensor = field(default_factory=_unknown)
    drift: Tensor = field(default_factory=lambda: torch.zeros(0))

    @classmethod
    def of(cls, embeddings: Tensor, num_prototypes: int) -> 'Prototypes':
        """Statistics of (N, D) embeddings."""
        x = embeddings.double().cpu()
        centroids = k_means(x, num_prototypes)
        nearest = torch.cdist(x, centroids).argmin(1)
        counts = torch.bincount(nearest, minlength=len(centroids))
        offsets = x - centroids[nearest]
        return cls(centroids, counts.double(),
                   pack(offsets.T @ offsets).float(),
                   torch.tensor(torch.inf, dtype=torch.float64))

    def within(self, drift_weight: float) -> Tensor:
        """Scatter and weighted drift, (D * (D + 1) / 2,) float64."""
        scatter = self.scatter.double()
        if drift_weight and self.drift.numel():
            scatter = scatter + drift_weight * self.drift.double()
        return scatter

    @property
    def size(self) -> int:
        """int: D."""
        return self.centroids.shape[1]

    @property
    def num_images(self) -> float:
        """float: Images of the task."""
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
        names = [part.name for part in fields(cls)]
        required = names[:names.index('usual')]
        if not set(required) <= set(state) <= set(names):
            raise ValueError(f'they hold {sorted(state)[:5]}, not '
                             f'{sorted(required)}')
        return cls(**state)


def own_embeddings(embeddings: Tensor) -> Tensor:
    """(N, D) or (N, L, D), see :meth:`BaseGate.fit` -> (N, D) of images."""
    return embeddings[:, 0] if embeddings.dim() == 3 else embeddings


def drift_of(embeddings: Tensor) -> Tensor:
    """How images move when they are disturbed, see :class:`Prototypes`.

    Args:
        embeddings (Tensor): As :meth:`BaseGate.fit` takes them, float64.

    Returns:
        Tensor: (D * (D + 1) / 2,) float32; empty without copies.
    """
    if embeddings.dim() == 2 or embeddings.shape[1] == 1:
        return torch.zeros(0)
    own, copies = embeddings[:, :1], embeddings[:, 1:]
    moves = (copies - own).flatten(0, 1)
    return pack(moves.T @ moves / copies.shape[1]).float()


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


def folds(num_images: int, num_folds: int) -> List[Tensor]:
    """Interleaved index sets for cross-fitting."""
    indices = torch.arange(num_images)
    return [indices[k::num_folds] for k in range(min(num_folds, num_images))]


def runs(num_images: int, num_folds: int) -> List[Tensor]:
    """Index sets for cross-fitting, each a run of neighbours.

    Images of a data set mostly come as frames of drives. Were neighbours
    dealt out to different folds, each would find its twins in the others,
    and a limit made from them would refuse many images of a new drive.
    """
    return list(
        torch.arange(num_images).tensor_split(min(num_folds, num_images)))
