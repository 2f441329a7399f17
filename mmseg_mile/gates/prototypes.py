# SPDX-License-Identifier: Apache-2.0
"""Sufficient statistics of a task's embeddings, and what is made of them."""
from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Dict, List, Sequence, Tuple

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

    def within(self, perturbation_weight: float) -> Tensor:
        """Scatter and weighted drift, (D * (D + 1) / 2,) float64."""
        scatter = self.scatter.double()
        if perturbation_weight and self.drift.numel():
            scatter = scatter + perturbation_weight * self.drift.double()
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


def ood_score(distances: Tensor, usual: Tensor, limit: Tensor) -> Tensor:
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


def merge_prototypes(states: Sequence[Dict[str, Tensor]],
                     pooled: bool = False) -> Dict[str, Tensor]:
    """What a gate would know had it seen the images of all tasks as one.

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
    drifts = [part.drift for part in parts]
    known = all(drift.numel() for drift in drifts)
    drift = torch.stack(drifts).double().sum(0) if known else torch.zeros(0)
    reach = max((part.reach for part in parts), key=_if_known)
    # an old part, with no limit of its own, leaves the merged task without
    widest = max(parts, key=lambda part: _if_known(part.limit))
    return Prototypes(centroids, counts, scatter.float(), reach, widest.usual,
                      widest.limit, drift.float()).state()


def _if_known(limit: Tensor) -> float:
    """A limit by its size; inf is of one image, and flags nothing."""
    if limit.isnan():
        return torch.inf
    return float(limit) if limit.isfinite() else -torch.inf
