# SPDX-License-Identifier: Apache-2.0
"""MILE's gate: the expert whose prototype lies nearest to the image."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Optional, Sequence, Tuple

import torch
from torch import Tensor

from mmseg.registry import TASK_UTILS
from mmseg_mile.structures import Routing
from .base_gate import BaseGate, check_bounds, check_choice, nearest_weights
from .prototypes import (NUM_FOLDS, OwnSpreads, Prototypes, calibrate,
                         drift_of, folds, ood_score, own_embeddings, pack,
                         unpack)

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
        perturbation_weight (float): What the drift of disturbed copies counts for
            in the covariance beside the spread of images. Defaults to 0,
            and has no effect without a covariance.
    """

    def __init__(self,
                 shrinkage: Optional[float],
                 perturbation_weight: float = 0.0) -> None:
        self.shrinkage = shrinkage
        self.perturbation_weight = 0.0 if shrinkage is None else perturbation_weight
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
                self.perturbation_weight)
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
                self._scatter += task.within(self.perturbation_weight)
        scatter = self._scatter
        for task in more:
            scatter = scatter + task.within(self.perturbation_weight)
        return shared_whitening(scatter, sum(t.num_images for t in tasks),
                                size, self.shrinkage)


def _pairwise(x: Tensor, centroids: Tensor) -> Tensor:
    """(B, M) Euclidean; by differences, so that equal points give zero."""
    return torch.cdist(
        x, centroids, compute_mode='donot_use_mm_for_euclid_dist')


# Shape legend: B images, D embedding, E experts
_METRICS = ('euclidean', 'cosine', 'mahalanobis')
_FLAGS = ('own', 'shared')


@TASK_UTILS.register_module()
class PrototypeGate(BaseGate):
    """Nearest prototype in the embedding of the frozen base.

    ``expert(x) = argmin_t min_k d(e(x), p_tk)``. With the Euclidean distance
    and one mean per task this is the gate of MILE (arXiv 2605.03555);
    'cosine' compares directions; 'mahalanobis' measures in units of the
    within-task covariance that all tasks share, so that directions in which
    images of any one task differ count little.

    Only counts, means and scatter of a task are kept. They are order-free,
    so tasks can come, merge and go, and computed with in float64.

    Args:
        metric (str): 'euclidean', 'cosine' or 'mahalanobis'.
        num_prototypes (int): k-means centroids per task. Defaults to 1.
        top_k (int): Experts per image. Defaults to 1.
        temperature (float): Of the weights ``softmax(-d / temperature)``
            over the chosen experts, d relative to the nearest one's
            typical distance; has no effect with one. Defaults to 1.
        ood_quantile (float): Share of new images of its own task that
            an expert must accept; images that are not accepted are flagged
            out-of-distribution. Defaults to 0.99.
        flag (str): Who accepts an image. 'own': the nearest expert alone,
            by the spread of its own images, see ``OwnSpread``; what it
            accepts never changes when others come and go, and the share
            must be 0.5 or more. 'shared': any expert, by the distances that
            the gate routes with. Defaults to 'own'.
        shrinkage (float): Of the covariance towards its diagonal, in
            (0, 1]. Defaults to 0.1.
        perturbation_weight (float): With 'mahalanobis', what the covariance of how
            training images move when they are disturbed, see
            :func:`perturbed_image`, counts for beside that of the images:
            directions in which light, sharpness and noise move an image
            should not choose its expert. The flag 'own' is left to notice
            them. 0 spares the copies. Defaults to 0.25.

    Raises:
        ValueError: If an argument is out of range.
    """

    needs_embeddings = True

    def __init__(self,
                 metric: str = 'mahalanobis',
                 num_prototypes: int = 1,
                 top_k: int = 1,
                 temperature: float = 1.0,
                 ood_quantile: float = 0.99,
                 shrinkage: float = 0.1,
                 perturbation_weight: float = 0.25,
                 flag: str = 'own') -> None:
        super().__init__()
        check_choice('metric', metric, _METRICS)
        check_bounds('num_prototypes', num_prototypes, 1)
        check_bounds('top_k', top_k, 1)
        check_bounds('temperature', temperature, 0, open_low=True)
        check_bounds('ood_quantile', ood_quantile, 0, 1, True)
        check_bounds('shrinkage', shrinkage, 0, 1, True)
        check_bounds('perturbation_weight', perturbation_weight, 0)
        check_choice('flag', flag, _FLAGS)
        if flag == 'own' and ood_quantile < 0.5:
            raise ValueError(
                "gate.ood_quantile must be 0.5 or more with gate.flag "
                f"'own', got {ood_quantile}")
        self.metric = metric
        self.num_prototypes = num_prototypes
        self.top_k = top_k
        self.temperature = temperature
        self.ood_quantile = ood_quantile
        self.shrinkage = shrinkage
        self.perturbation_weight = perturbation_weight
        self.flag = flag
        self._spreads = OwnSpreads()
        self._tasks = PrototypeMetric(
            shrinkage if metric == 'mahalanobis' else None,
            perturbation_weight)

    @property
    def num_views(self) -> int:  # type: ignore[override]
        """int: See :class:`BaseGate`."""
        return 2 if self._tasks.perturbation_weight else 1

    def fit(self, task: str, embeddings: Optional[Tensor]) -> None:
        """Learn the prototypes of a task, see :meth:`BaseGate.fit`.

        Raises:
            ValueError: If there is no embedding, one is not finite, or
                their size differs from that of earlier tasks.
        """
        if embeddings is None or not len(embeddings):
            raise ValueError(f'task {task!r} gave the gate no images')
        looks = self._checked(embeddings, f'task {task!r}')
        x = own_embeddings(looks)
        prototypes = Prototypes.of(x, self.num_prototypes)
        if self._tasks.perturbation_weight:
            prototypes.drift = drift_of(looks)
        prototypes.reach = self._tasks.calibrate(x, self.num_prototypes,
                                                 self.ood_quantile,
                                                 prototypes.drift)
        prototypes.usual, prototypes.limit = calibrate(
            x, self.num_prototypes, max(0.5, self.ood_quantile))
        self._add(task, prototypes)

    def remove(self, task: str) -> None:
        """Forget a task; the others' statistics stay as they are."""
        super().remove(task)
        del self._tasks[task]
        self._spreads.forget(task)

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
        x = self._checked(embeddings, 'the images')
        return self._tasks.distances(x)

    def route(self, embeddings: Optional[Tensor],
              tasks: Sequence[Optional[str]]) -> Routing:
        """See :meth:`BaseGate.route`; ``tasks`` is not looked at."""
        assert embeddings is not None
        distances_BE = self.distances(embeddings)
        typical_E = self._tasks.typical
        # stable: of equally near experts, the one learned first
        values, indices = distances_BE.sort(dim=1, stable=True)
        values, indices = values[:, :self.top_k], indices[:, :self.top_k]
        scale = self.temperature * typical_E.clamp_min(1e-12)[indices[:, :1]]
        weights = (-(values - values[:, :1]) / scale).softmax(1)
        weights_BE = torch.zeros_like(distances_BE).scatter_(
            1, indices, weights)
        return self._routing(embeddings, distances_BE, weights_BE)

    def ood_score(self, embeddings: Tensor, distances_BE: Tensor) -> Tensor:
        """How far images lie outside of what an expert knows.

        Args:
            embeddings (Tensor): (B, D).
            distances_BE (Tensor): (B, E), of :meth:`distances`.

        Returns:
            Tensor: (B,) float64; above 1 the image is flagged out-of-distribution.
            With the flag 'own', see :func:`own_spread.out-of-distribution score`, of the
            nearest expert. With 'shared', and for an expert stored before
            there was another, the distance to an expert relative to the one
            that ``ood_quantile`` of its own images keep, of the
            expert that takes the image best.
        """
        limits_E = self._tasks.typical * self._tasks.reach
        # of equal images the limit is 0, which a distance of 0 keeps
        tiny = torch.finfo(limits_E.dtype).tiny
        result_B = (distances_BE / limits_E.clamp_min(tiny)).amin(1)
        if self.flag == 'shared':
            return result_B
        x, nearest_B = self._space(embeddings), distances_BE.argmin(1)
        for index in nearest_B.unique().tolist():
            name = self.expert_names[index]
            task, chosen = self._tasks[name], nearest_B == index
            if not task.limit.isnan():
                result_B[chosen] = ood_score(
                    self._spreads.of(name, task).distances(x[chosen]),
                    task.usual, task.limit)
        return result_B

    def prototype_distances(self) -> Tensor:
        """See :meth:`BaseGate.prototype_distances`.

        Row i, column j: from i's prototypes to the nearest of j's, averaged
        over the images that they stand for.
        """
        return self._tasks.between()

    def mean_distances(self) -> Tensor:
        """(E, E) distance of each task's own images to each expert.

        Row i, column j: root mean square over the training images of task
        i, from what is kept of them; exact with one prototype per task,
        where it is ``sqrt(d_ii^2 + |m_i - m_j|^2)``.
        """
        return self._tasks.mean_distances()

    def nearest(self, embeddings: Tensor) -> str:
        """The expert nearest, on average, to a new task's images.

        Args:
            embeddings (Tensor): Of the new task, as :meth:`fit` takes them.
        """
        x = own_embeddings(embeddings)
        mean = self.distances(x).square().mean(0)
        return self.expert_names[int(mean.argmin())]

    def neighbours(self, embeddings: Tensor) -> Dict[str, float]:
        """The experts nearest to a new task, weighted as SemLA would.

        Args:
            embeddings (Tensor): Of the new task, as :meth:`fit` takes them.

        Returns:
            dict[str, float]: See :func:`nearest_weights`, for the root mean
            square of the images' distances.
        """
        x = own_embeddings(embeddings)
        mean = self.distances(x).square().mean(0).sqrt()
        weights = nearest_weights(mean[None])[0].tolist()
        return {n: w for n, w in zip(self.expert_names, weights) if w > 0}

    def _routing(self, embeddings: Tensor, distances_BE: Tensor,
                 weights_BE: Tensor) -> Routing:
        """With the flag for out-of-distribution images."""
        ood_score_B = self.ood_score(embeddings, distances_BE)
        return Routing(
            self.expert_names,
            weights_BE.float(),
            distances_BE.float(),
            ood_score_B > 1,
            ood_score=ood_score_B)

    def _add(self, task: str, prototypes: Prototypes) -> None:
        self._check_size(prototypes.centroids, f'task {task!r}')
        super().fit(task, None)
        self._tasks[task] = prototypes
        self._spreads.forget(task)

    def _checked(self, embeddings: Tensor, whose: str) -> Tensor:
        self._check_size(embeddings, whose)
        if not embeddings.isfinite().all():
            raise ValueError(f'embeddings of {whose} are not finite: check '
                             'the normalisation of the images')
        return self._space(embeddings)

    def _check_size(self, embeddings: Tensor, whose: str) -> None:
        # all tasks that were taken have one size
        for other in self._tasks.names[:1]:
            size = self._tasks[other].size
            if size != embeddings.shape[-1]:
                raise ValueError(
                    f'embeddings of {whose} have {embeddings.shape[-1]} '
                    f'values, those of task {other!r} {size}: keep the '
                    'embedder as it was for the whole stream')

    def _space(self, embeddings: Tensor) -> Tensor:
        x = embeddings.detach().double().cpu()
        if self.metric == 'cosine':
            return torch.nn.functional.normalize(x, dim=-1)
        return x
