# SPDX-License-Identifier: Apache-2.0
"""MILE's gate: the expert whose prototype lies nearest to the image."""
from __future__ import annotations

from typing import Dict, Optional, Sequence

import torch
from torch import Tensor

from mmseg.registry import TASK_UTILS
from mmseg_mile.structures import Routing
from .argument_checks import check_bounds, check_choice
from .base_gate import BaseGate
from .inverse_distance import nearest_weights
from .own_spread import OwnSpreads, calibrate, unfamiliarity
from .prototype_metric import PrototypeMetric
from .prototypes import Prototypes, drift_of, own_embeddings

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
        unfamiliar_quantile (float): Share of new images of its own task that
            an expert must accept; images that are not accepted are flagged
            unfamiliar. Defaults to 0.99.
        flag (str): Who accepts an image. 'own': the nearest expert alone,
            by the spread of its own images, see ``OwnSpread``; what it
            accepts never changes when others come and go, and the share
            must be 0.5 or more. 'shared': any expert, by the distances that
            the gate routes with. Defaults to 'own'.
        shrinkage (float): Of the covariance towards its diagonal, in
            (0, 1]. Defaults to 0.1.
        drift_weight (float): With 'mahalanobis', what the covariance of how
            training images move when they are disturbed, see
            :func:`disturbed_image`, counts for beside that of the images:
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
                 unfamiliar_quantile: float = 0.99,
                 shrinkage: float = 0.1,
                 drift_weight: float = 0.25,
                 flag: str = 'own') -> None:
        super().__init__()
        check_choice('metric', metric, _METRICS)
        check_bounds('num_prototypes', num_prototypes, 1)
        check_bounds('top_k', top_k, 1)
        check_bounds('temperature', temperature, 0, open_low=True)
        check_bounds('unfamiliar_quantile', unfamiliar_quantile, 0, 1, True)
        check_bounds('shrinkage', shrinkage, 0, 1, True)
        check_bounds('drift_weight', drift_weight, 0)
        check_choice('flag', flag, _FLAGS)
        if flag == 'own' and unfamiliar_quantile < 0.5:
            raise ValueError(
                "gate.unfamiliar_quantile must be 0.5 or more with gate.flag "
                f"'own', got {unfamiliar_quantile}")
        self.metric = metric
        self.num_prototypes = num_prototypes
        self.top_k = top_k
        self.temperature = temperature
        self.unfamiliar_quantile = unfamiliar_quantile
        self.shrinkage = shrinkage
        self.drift_weight = drift_weight
        self.flag = flag
        self._spreads = OwnSpreads()
        self._tasks = PrototypeMetric(
            shrinkage if metric == 'mahalanobis' else None, drift_weight)

    @property
    def num_looks(self) -> int:  # type: ignore[override]
        """int: See :class:`BaseGate`."""
        return 2 if self._tasks.drift_weight else 1

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
        if self._tasks.drift_weight:
            prototypes.drift = drift_of(looks)
        prototypes.reach = self._tasks.calibrate(x, self.num_prototypes,
                                                 self.unfamiliar_quantile,
                                                 prototypes.drift)
        prototypes.usual, prototypes.limit = calibrate(
            x, self.num_prototypes, max(0.5, self.unfamiliar_quantile))
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

    def unfamiliarity(self, embeddings: Tensor,
                      distances_BE: Tensor) -> Tensor:
        """How far images lie outside of what an expert knows.

        Args:
            embeddings (Tensor): (B, D).
            distances_BE (Tensor): (B, E), of :meth:`distances`.

        Returns:
            Tensor: (B,) float64; above 1 the image is flagged unfamiliar.
            With the flag 'own', see :func:`own_spread.unfamiliarity`, of the
            nearest expert. With 'shared', and for an expert stored before
            there was another, the distance to an expert relative to the one
            that ``unfamiliar_quantile`` of its own images keep, of the
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
                result_B[chosen] = unfamiliarity(
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
        """With the flag for unfamiliar images."""
        unfamiliarity_B = self.unfamiliarity(embeddings, distances_BE)
        return Routing(
            self.expert_names,
            weights_BE.float(),
            distances_BE.float(),
            unfamiliarity_B > 1,
            unfamiliarity=unfamiliarity_B)

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
