# SPDX-License-Identifier: Apache-2.0
"""MILE's gate: the expert whose prototype lies nearest to the image."""
from __future__ import annotations

import math
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmseg.registry import TASK_UTILS
from mmseg_mile.structures import Routing
from .base_gate import BaseGate, check_bounds, check_choice, nearest_weights
from .embedders import PERTURBATIONS
from .prototypes import Prototypes, own_embeddings, pack, unpack

# Shape legend: B images, N images of a task, D embedding, E experts,
# M centroids

_METRICS = ('euclidean', 'cosine', 'mahalanobis')
# Cross-fitting of the limits that flag an image.
_NUM_FOLDS = 5
# Tasks whose own spread is kept at hand, of D * D values each.
_NUM_SPREADS = 64


@TASK_UTILS.register_module()
class PrototypeGate(BaseGate):
    """Nearest prototype in the embedding of the frozen base.

    ``expert(x) = argmin_t min_k d(e(x), p_tk)``. With the defaults, the
    Euclidean distance and one mean per task, this is the gate of MILE (arXiv
    2605.03555). 'cosine' compares directions; 'mahalanobis' measures in
    units of the within-task covariance that all tasks share, so that
    directions in which images of any one task differ count little.

    An image is flagged out-of-distribution that lies further from the
    nearest expert, in the spread of that expert's own training images, than
    new images of its task do, see :meth:`ood_score`. Nothing of another task
    enters: what an expert accepts stays the same whoever comes and goes.

    Only counts, means and scatter of a task are kept, see
    :class:`Prototypes`; computed with in float64.

    Args:
        metric (str): 'euclidean', 'cosine' or 'mahalanobis'. Defaults to
            'euclidean'.
        num_prototypes (int): k-means centroids per task. Defaults to 1.
        top_k (int): Experts per image. Defaults to 1.
        temperature (float): Of the weights ``softmax(-d / temperature)``
            over the chosen experts, d relative to the root mean squared
            distance of the nearest one's own images from their mean; has no
            effect with one expert. Defaults to 1.
        ood_quantile (float): Share of new images of its own task that an
            expert accepts, in [0.5, 1]. Defaults to 0.99.
        shrinkage (float): With 'mahalanobis', of the covariance towards its
            diagonal, in (0, 1]. Defaults to 0.1.
        perturbation_weight (float): With 'mahalanobis', what the covariance
            of how augmented views of an image move, see
            :func:`perturbed_image`, counts for beside that of the images:
            directions in which light, sharpness and noise move an image
            should not choose its expert. Defaults to 0: no views are
            embedded.
        perturbations (Sequence[str]): What those views change, of
            'light', 'sharpness' and 'noise'. Without 'sharpness', that of
            a camera tells its images from those of others. Defaults to all.

    Raises:
        ValueError: If an argument is out of range.
    """

    needs_embeddings = True

    def __init__(self,
                 metric: str = 'euclidean',
                 num_prototypes: int = 1,
                 top_k: int = 1,
                 temperature: float = 1.0,
                 ood_quantile: float = 0.99,
                 shrinkage: float = 0.1,
                 perturbation_weight: float = 0.0,
                 perturbations: Sequence[str] = PERTURBATIONS) -> None:
        super().__init__()
        check_choice('metric', metric, _METRICS)
        check_bounds('num_prototypes', num_prototypes, 1)
        check_bounds('top_k', top_k, 1)
        check_bounds('temperature', temperature, 0, open_low=True)
        check_bounds('ood_quantile', ood_quantile, 0.5, 1)
        check_bounds('shrinkage', shrinkage, 0, 1, open_low=True)
        check_bounds('perturbation_weight', perturbation_weight, 0)
        if perturbation_weight and metric != 'mahalanobis':
            raise ValueError(
                f'gate.perturbation_weight={perturbation_weight} widens the '
                f'covariance of metric mahalanobis, which {metric!r} has not: '
                'set it to 0, or choose that metric')
        kinds = tuple(perturbations)
        if not kinds or set(kinds) - set(PERTURBATIONS):
            raise ValueError('gate.perturbations must be some of '
                             f'{PERTURBATIONS}, got {kinds}')
        if kinds != PERTURBATIONS and not perturbation_weight:
            raise ValueError(
                f'gate.perturbations={kinds} has no effect without '
                'gate.perturbation_weight: give it a weight, or leave the '
                'kinds out')
        self.metric = metric
        self.num_prototypes = num_prototypes
        self.top_k = top_k
        self.temperature = temperature
        self.ood_quantile = ood_quantile
        self.shrinkage = shrinkage
        self.perturbation_weight = perturbation_weight
        self.num_views = 2 if perturbation_weight else 1
        self.perturbations = kinds
        self._tasks: Dict[str, Prototypes] = {}
        self._shared: Optional[_SharedMetric] = None
        self._spreads: Dict[str, _Metric] = {}

    def fit(self, task: str, embeddings: Optional[Tensor]) -> None:
        """Learn the prototypes of a task, see :meth:`BaseGate.fit`.

        Raises:
            ValueError: If there is no embedding, one is not finite, or
                their size differs from that of earlier tasks.
        """
        if embeddings is None or not len(embeddings):
            raise ValueError(f'task {task!r} gave the gate no images')
        views = self._checked(embeddings, f'task {task!r}')
        if not self.perturbation_weight:
            views = own_embeddings(views)
        prototypes = Prototypes.of(views, self.num_prototypes)
        prototypes.median_distance, prototypes.max_distance = _calibrate(
            own_embeddings(views), self.num_prototypes, self.ood_quantile)
        self._add(task, prototypes)

    def remove(self, task: str) -> None:
        """Forget a task; the others' statistics stay as they are."""
        super().remove(task)
        del self._tasks[task]
        self._shared = None
        self._spreads.pop(task, None)

    def state(self, task: str) -> Dict[str, Tensor]:
        """See :meth:`BaseGate.state`."""
        return self._tasks[task].state()

    def load_state(self, task: str, state: Dict[str, Tensor]) -> None:
        """See :meth:`BaseGate.load_state`.

        Raises:
            ValueError: If another kind of gate has fitted it.
        """
        try:
            prototypes = Prototypes.from_state(state)
        except ValueError as error:
            raise ValueError(
                f'stored statistics of task {task!r} are no prototypes: '
                f'{error}. Load them with the gate they were fitted with.'
            ) from error
        self._add(task, prototypes)

    def route(self, embeddings: Optional[Tensor],
              tasks: Sequence[Optional[str]]) -> Routing:
        """See :meth:`BaseGate.route`; ``tasks`` is not looked at."""
        assert embeddings is not None
        distances_BE = self.distances(embeddings)
        # stable: of equally near experts, the one learned first
        values, indices = distances_BE.sort(dim=1, stable=True)
        values, indices = values[:, :self.top_k], indices[:, :self.top_k]
        unit_E = self._metric().rms_distances.clamp_min(1e-12)
        scale = self.temperature * unit_E[indices[:, :1]]
        weights = (-(values - values[:, :1]) / scale).softmax(1)
        weights_BE = torch.zeros_like(distances_BE).scatter_(
            1, indices, weights)
        return self._routing(embeddings, distances_BE, weights_BE)

    def distances(self, embeddings: Tensor) -> Tensor:
        """Distance of each image to each expert.

        Args:
            embeddings (Tensor): (B, D).

        Returns:
            Tensor: (B, E) float64 on the CPU.

        Raises:
            ValueError: If no task was learned yet, or an embedding is not
                finite or of another size.
        """
        self._check_ready()
        return self._metric().distances(
            self._checked(embeddings, 'the images'))

    def ood_score(self, embeddings: Tensor, distances_BE: Tensor) -> Tensor:
        """Out-of-distribution score of each image.

        ``log(d / median) / log(max / median)`` with the Mahalanobis distance
        d to the nearest expert's centroids under its own covariance. A new
        image of the task scores 0 in the median, and at most 1 as often as
        ``ood_quantile`` asks for, however widely its distances vary.

        Args:
            embeddings (Tensor): (B, D).
            distances_BE (Tensor): (B, E), of :meth:`distances`.

        Returns:
            Tensor: (B,) float64; above 1 the image is flagged.
        """
        x, nearest_B = self._space(embeddings), distances_BE.argmin(1)
        scores_B = x.new_zeros(len(x))
        tiny = torch.finfo(x.dtype).tiny
        for index in nearest_B.unique().tolist():
            name, chosen = self.expert_names[index], nearest_B == index
            task = self._tasks[name]
            found = self._spread(name).distances(x[chosen]).amin(1)
            if not task.max_distance.isfinite():
                continue
            low = task.median_distance.clamp_min(tiny).log()
            high = task.max_distance.clamp_min(tiny).log()
            # of equal images both are one: the least step beyond is outside
            span = (high - low).clamp_min(1e-9)
            scores_B[chosen] = (found.clamp_min(tiny).log() - low) / span
        return scores_B

    def prototype_distances(self) -> Tensor:
        """See :meth:`BaseGate.prototype_distances`.

        Row i, column j: from i's prototypes to the nearest of j's, averaged
        over the images that they stand for.
        """
        rows = [
            task.counts @ self._metric().distances(
                self._space(task.centroids)) / task.num_images
            for task in self._tasks.values()
        ]
        return torch.stack(rows) if rows else torch.zeros(0, 0)

    def mean_distances(self) -> Tensor:
        """(E, E) root mean square distance of tasks' images to experts.

        Row i, column j: over the training images of task i, from what is
        kept of them; exact with one prototype per task, where it is
        ``sqrt(d_ii^2 + |m_i - m_j|^2)``.
        """
        metric = self._metric()
        rows = []
        for own, task in zip(metric.rms_distances, self._tasks.values()):
            apart = metric.distances(task.centroids).square()
            rows.append(own**2 + task.counts @ apart / task.num_images)
        return torch.stack(rows).sqrt()

    def nearest(self, embeddings: Tensor) -> str:
        """The expert nearest, on average, to a new task's images.

        Args:
            embeddings (Tensor): Of the new task, as :meth:`fit` takes them.
        """
        mean = self._mean_square(embeddings)
        return self.expert_names[int(mean.argmin())]

    def neighbours(self, embeddings: Tensor) -> Dict[str, float]:
        """The experts nearest to a new task, weighted as SemLA would.

        Args:
            embeddings (Tensor): Of the new task, as :meth:`fit` takes them.

        Returns:
            dict[str, float]: See :func:`nearest_weights`, for the root mean
            square of the images' distances.
        """
        mean = self._mean_square(embeddings).sqrt()
        weights = nearest_weights(mean[None])[0].tolist()
        return {n: w for n, w in zip(self.expert_names, weights) if w > 0}

    def _mean_square(self, embeddings: Tensor) -> Tensor:
        """(E,) mean squared distance of a new task's images."""
        return self.distances(own_embeddings(embeddings)).square().mean(0)

    def _routing(self, embeddings: Tensor, distances_BE: Tensor,
                 weights_BE: Tensor) -> Routing:
        """With the flag for out-of-distribution images."""
        scores_B = self.ood_score(embeddings, distances_BE)
        return Routing(
            self.expert_names,
            weights_BE.float(),
            distances_BE.float(),
            scores_B > 1,
            ood_score=scores_B)

    def _add(self, task: str, prototypes: Prototypes) -> None:
        self._check_size(prototypes.centroids, f'task {task!r}')
        super().fit(task, None)
        self._tasks[task] = prototypes
        self._shared = None
        self._spreads.pop(task, None)

    def _metric(self) -> '_SharedMetric':
        """The metric of all tasks, made when a distance is asked for."""
        if self._shared is None:
            tasks = list(self._tasks.values())
            matrix = None
            if self.metric == 'mahalanobis':
                matrix = _shared_whitening(tasks, self.shrinkage,
                                           self.perturbation_weight)
            # a mean of unit vectors is shorter the wider they spread
            prototypes = [self._space(task.centroids) for task in tasks]
            self._shared = _SharedMetric.of(tasks, prototypes, matrix)
        return self._shared

    def _spread(self, name: str) -> '_Metric':
        """The metric of one task's own spread; those used last are kept."""
        found = self._spreads.pop(name, None)
        if found is None:
            found = _own_metric(self._tasks[name])
        self._spreads[name] = found
        if len(self._spreads) > _NUM_SPREADS:
            del self._spreads[next(iter(self._spreads))]
        return found

    def _checked(self, embeddings: Tensor, whose: str) -> Tensor:
        self._check_size(embeddings, whose)
        if not embeddings.isfinite().all():
            raise ValueError(f'embeddings of {whose} are not finite: check '
                             'the normalisation of the images')
        return self._space(embeddings)

    def _check_size(self, embeddings: Tensor, whose: str) -> None:
        # all tasks that were taken have one size
        for name, task in self._tasks.items():
            if task.size != embeddings.shape[-1]:
                raise ValueError(
                    f'embeddings of {whose} have {embeddings.shape[-1]} '
                    f'values, those of task {name!r} {task.size}: keep the '
                    'embedder as it was for the whole stream')
            return

    def _space(self, embeddings: Tensor) -> Tensor:
        x = embeddings.detach().double().cpu()
        return F.normalize(x, dim=-1) if self.metric == 'cosine' else x


class _Metric(NamedTuple):
    """``d(x, c) = |W (x - c)|``, with the centroids whitened once.

    Args:
        matrix (Tensor, optional): (D, D) float64, W; None for the identity.
        centroids (Tensor): (M, D), ``W c``.
    """
    matrix: Optional[Tensor]
    centroids: Tensor

    @classmethod
    def of(cls, centroids: Tensor, matrix: Optional[Tensor]) -> '_Metric':
        """The metric of centroids that are not whitened yet."""
        return cls(matrix, _whiten(centroids, matrix))

    def distances(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, M)."""
        # by differences, so that equal points are at distance zero
        return torch.cdist(
            _whiten(x, self.matrix),
            self.centroids,
            compute_mode='donot_use_mm_for_euclid_dist')


class _SharedMetric(NamedTuple):
    """One metric for the prototypes of all tasks.

    Args:
        metric (_Metric): Of the M centroids of all tasks.
        owners (Tensor): (M,), index of each centroid's task.
        rms_distances (Tensor): (E,), root mean squared distance of each
            task's own training images from their means.
    """
    metric: _Metric
    owners: Tensor
    rms_distances: Tensor

    @classmethod
    def of(cls, tasks: Sequence[Prototypes], prototypes: Sequence[Tensor],
           matrix: Optional[Tensor]) -> '_SharedMetric':
        """Prototypes (K, D) of tasks under ``W``; None is the identity.

        The mean squared distance follows from the scatter alone, ``tr(W' W
        S_t) / n_t``, so it stays right when another task changes W.
        """
        eye = torch.eye(tasks[0].size, dtype=torch.float64)
        precision = eye if matrix is None else matrix.T @ matrix
        # off the diagonal, a packed entry stands for two
        packed = pack(2 * precision - precision.diag().diag())
        squares = torch.stack([
            torch.dot(packed, task.scatter.double()) / task.num_images
            for task in tasks
        ])
        sizes = torch.tensor([len(own) for own in prototypes])
        return cls(
            _Metric.of(torch.cat(list(prototypes)), matrix),
            torch.arange(len(tasks)).repeat_interleave(sizes),
            squares.clamp_min(0).sqrt())

    def distances(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, E), to the nearest centroid of each task."""
        apart_BM = self.metric.distances(x)
        nearest_BE = apart_BM.new_full((len(x), len(self.rms_distances)),
                                       torch.inf)
        return nearest_BE.scatter_reduce_(1, self.owners.expand(len(x), -1),
                                          apart_BM, 'amin')


def _whiten(x: Tensor, matrix: Optional[Tensor]) -> Tensor:
    """(N, D) -> (N, D); equal rows give equal rows, bit for bit."""
    if matrix is None:
        return x
    # row by row: in one product, rounding depends on the row's place, which
    # would break ties between experts and zero distances
    return torch.stack([matrix @ row.clone() for row in x])


def _shared_whitening(tasks: Sequence[Prototypes], shrinkage: float,
                      perturbation_weight: float) -> Tensor:
    """Whitening by the within-task covariance that all tasks share.

    ``S = sum_t scatter_t / sum_t n_t``, where a scatter includes the task's
    weighted perturbation, shrunk towards its diagonal: ``C = (1 - a) S + a
    diag(S) = L L'`` and ``W = L^-1``.

    Args:
        tasks (Sequence[Prototypes]): All tasks.
        shrinkage (float): a, in (0, 1].
        perturbation_weight (float): As in :class:`PrototypeGate`.

    Returns:
        Tensor: (D, D) float64, W.

    Raises:
        ValueError: If the covariance is too singular for this shrinkage.
    """
    scatter = torch.zeros_like(tasks[0].scatter, dtype=torch.float64)
    for task in tasks:
        scatter += task.within(perturbation_weight)
    covariance, size = unpack(scatter / sum(t.num_images for t in tasks),
                              tasks[0].size), tasks[0].size
    variance = _positive(covariance.diagonal())
    covariance *= 1 - shrinkage
    covariance.diagonal().copy_(variance)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        raise ValueError(
            f'gate.shrinkage {shrinkage} is too small: the embeddings spread '
            f'in fewer than their {size} dimensions. Raise it; 0.1 is the '
            'default.')
    return _inverse_of_factor(factor)


def _own_metric(task: Prototypes) -> _Metric:
    """The metric of one task's own spread.

    With ``S = scatter / (N - K)`` and its correlations R, the covariance is
    ``diag(S)^1/2 ((1 - a) R + a I) diag(S)^1/2``, where a is
    :func:`oas_shrinkage`: the fewer images, the less is made of how features
    go together. The directions in which a task varies little are what gives
    an image of another domain away.
    """
    degrees = max(1.0, task.num_images - len(task.centroids))
    covariance = unpack(task.scatter.double() / degrees, task.size)
    deviation = _positive(covariance.diagonal()).sqrt()
    correlation = covariance / deviation / deviation[:, None]
    correlation.fill_diagonal_(1)
    correlation *= 1 - oas_shrinkage(correlation, task.num_images)
    correlation.fill_diagonal_(1)
    matrix = _inverse_of_factor(torch.linalg.cholesky(correlation))
    return _Metric.of(task.centroids, matrix / deviation)


def _positive(variance: Tensor) -> Tensor:
    """Variances that a constant feature cannot make zero."""
    return variance.clamp_min(variance.mean().clamp_min(1e-12) * 1e-6)


def _inverse_of_factor(factor: Tensor) -> Tensor:
    """``L^-1`` of a lower triangle."""
    eye = torch.eye(len(factor), dtype=factor.dtype)
    return torch.linalg.solve_triangular(factor, eye, upper=False)


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


def _calibrate(x: Tensor, num_prototypes: int,
               quantile: float) -> Tuple[Tensor, Tensor]:
    """Distances that new images of a task will have, by cross-fitting.

    Images lie closer to a fit that they took part in than new ones will, so
    each fold is measured against the fit of the others. Images of a data set
    mostly come as frames of drives, so a fold is a run of neighbours: were
    neighbours dealt out to different folds, each would find its twins in the
    others, and the limit would refuse many images of a new drive. Of N
    distances the limit is the ``ceil((N + 1) quantile)``-th smallest, or the
    largest: it keeps that share of new images on average where they come as
    the folds do (split conformal prediction), for fewer than ``1 / (1 -
    quantile)`` images a little less.

    Args:
        x (Tensor): (N, D) float64, of the task's images in their order.
        num_prototypes (int): K.
        quantile (float): Share of new images that should be kept.

    Returns:
        tuple[Tensor, Tensor]: (), median and limit of the distances. With
        fewer than two images nothing can be calibrated: both are inf.
    """
    if len(x) < 2:
        infinite = x.new_tensor(torch.inf)
        return infinite, infinite.clone()
    parts: List[Tensor] = []
    indices = torch.arange(len(x))
    for fold in indices.tensor_split(min(_NUM_FOLDS, len(x))):
        kept = torch.ones(len(x), dtype=torch.bool)
        kept[fold] = False
        fitted = _own_metric(Prototypes.of(x[kept], num_prototypes))
        parts.append(fitted.distances(x[fold]).amin(1))
    distances = torch.cat(parts).sort().values
    rank = min(len(x), math.ceil((len(x) + 1) * quantile))
    return distances.median(), distances[rank - 1]
