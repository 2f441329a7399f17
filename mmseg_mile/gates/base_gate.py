# SPDX-License-Identifier: Apache-2.0
"""The interface of gates, and weights of experts by their distance."""
from __future__ import annotations

import math
from abc import ABCMeta, abstractmethod
from dataclasses import replace
from typing import Any, Dict, Optional, Sequence, Tuple

import torch
from torch import Tensor

from mmseg_mile.structures import Routing
from .embedders import PERTURBATIONS

# Shape legend: B images, D embedding, E experts, K chosen experts

#: K of SemLA (Qorbani et al., CVPR 2025, arXiv 2503.21780).
TOP_K = 5
#: Temperature for distances relative to the nearest one. SemLA's 0.05 is for
#: CLIP's embeddings, whose distances have the size of 8.
RELATIVE_TAU = 0.4
OOD_POLICIES = ('nearest', 'fuse', 'base', 'abstain')


class BaseGate(metaclass=ABCMeta):
    """Chooses experts for images.

    A gate learns once per task, from embeddings of the task's training
    images, and keeps statistics only. A gate that needs no embedding is
    still told of every task.
    """

    #: L, embeddings of a training image that :meth:`fit` wants: its own, and
    #: those of augmented views of it.
    num_views = 1
    #: What those views may change, see :func:`perturbed_image`.
    perturbations: Tuple[str, ...] = PERTURBATIONS
    #: Whether :meth:`route` needs embeddings; without, the base's pass over
    #: the image is spared.
    needs_embeddings = False
    #: Whether :meth:`route` has to be told the true tasks.
    needs_task_label = False

    def __init__(self) -> None:
        self._names: Dict[str, None] = {}

    @property
    def expert_names(self) -> Tuple[str, ...]:
        """tuple[str]: Experts in the order in which they were learned."""
        return tuple(self._names)

    def check_embeddings(self, embeddings: Tensor) -> None:  # noqa: B027
        """Refuse embeddings that :meth:`fit` could not learn from.

        Args:
            embeddings (Tensor): (B, D) of some images, before any training.

        Raises:
            ValueError: If they do not fit the gate.
        """

    def fit(self, task: str, embeddings: Optional[Tensor]) -> None:
        """Learn a task.

        Args:
            task (str): Name of the task and its expert.
            embeddings (Tensor, optional): (N, D), of its training images,
                or (N, L, D) with ``num_views`` L of each, its own first;
                None for gates that need none.
        """
        self._names[task] = None

    def remove(self, task: str) -> None:
        """Forget a task.

        Raises:
            ValueError: If the gate has not learned it.
        """
        if task not in self._names:
            raise ValueError(f'the gate has not learned task {task!r}; '
                             f'tasks: {list(self._names)}')
        del self._names[task]

    def state(self, task: str) -> Dict[str, Tensor]:
        """Statistics of a task, to be stored with its expert."""
        return {}

    def load_state(self, task: str, state: Dict[str, Tensor]) -> None:
        """Take over stored statistics of a task."""
        self._names[task] = None

    def prototype_distances(self) -> Optional[Tensor]:
        """(E, E) distance of each expert's prototypes to each expert.

        In the unit of :attr:`Routing.distances`; None for gates that measure
        no distance.
        """
        return None

    @abstractmethod
    def route(self, embeddings: Optional[Tensor],
              tasks: Sequence[Optional[str]]) -> Routing:
        """Choose experts for a batch.

        Args:
            embeddings (Tensor, optional): (B, D), or None if the gate needs
                none.
            tasks (Sequence[str, optional]): B names of the true tasks where
                they are known; only the oracle may look.

        Returns:
            Routing: For the B images.

        Raises:
            ValueError: If no task was learned yet.
        """

    def _check_ready(self) -> None:
        if not self._names:
            raise ValueError('the gate has learned no task yet: train a '
                             'task, or load a library, before predicting')

    def _one_hot(self,
                 chosen: Sequence[str],
                 device: Optional[torch.device] = None) -> Routing:
        """A hard routing without distances."""
        names = self.expert_names
        weights = torch.zeros(len(chosen), len(names), device=device)
        for index, name in enumerate(chosen):
            if name not in self._names:
                raise ValueError(f'{type(self).__name__} chose {name!r}, '
                                 f'which is no expert; experts: {names}')
            weights[index, names.index(name)] = 1
        return Routing(names, weights, torch.full_like(weights, torch.nan),
                       torch.zeros(len(chosen), dtype=torch.bool))


def check_choice(field: str, value: Any, allowed: Sequence[Any]) -> None:
    """Refuse a value of ``gate.<field>`` that is not one of ``allowed``.

    Raises:
        ValueError: If it is not.
    """
    if value not in allowed:
        raise ValueError(f'gate.{field} must be one of {tuple(allowed)}, got '
                         f'{value!r}')


def check_bounds(field: str,
                 value: float,
                 low: float,
                 high: float = math.inf,
                 open_low: bool = False) -> None:
    """Refuse a value of ``gate.<field>`` that is not finite or not in bounds.

    Args:
        field (str): Of the gate.
        value (float): Its value.
        low (float): Smallest value.
        high (float): Largest value. Defaults to infinity: any finite one.
        open_low (bool): Whether ``low`` itself is refused.

    Raises:
        ValueError: If it is out of bounds.
    """
    enough = value > low if open_low else value >= low
    if enough and value <= high and math.isfinite(value):
        return
    if math.isinf(high):
        allowed = f'{">" if open_low else ">="} {low}'
    else:
        allowed = f'in {"(" if open_low else "["}{low}, {high}]'
    raise ValueError(f'gate.{field} must be {allowed}, got {value}')


def inverse_distance_weights(distances_BK: Tensor, tau: float) -> Tensor:
    """``w = softmax_k(1 / (d_k tau))``, the limit of it where a ``d`` is 0.

    SemLA, eq. 4. With an image that lies on a prototype the formula divides
    by zero; its limit is all weight on the experts at distance zero, in
    equal parts.

    Args:
        distances_BK (Tensor): (B, K), not negative.
        tau (float): Temperature, above 0.

    Returns:
        Tensor: (B, K), rows sum to 1.
    """
    scores = 1 / (distances_BK * tau)
    # so near that the inverse overflows counts as zero
    at_zero = scores.isinf()
    exact = at_zero.any(1, keepdim=True)
    scores = scores.masked_fill(exact & ~at_zero, -torch.inf)
    return scores.masked_fill(at_zero, 0).softmax(1)


def nearest_weights(distances_BE: Tensor,
                    top_k: int = TOP_K,
                    tau: float = RELATIVE_TAU,
                    relative: bool = True,
                    uniform: bool = False) -> Tensor:
    """Weights of the ``top_k`` nearest of all experts.

    Args:
        distances_BE (Tensor): (B, E).
        top_k (int): Experts per image; fewer where there are fewer.
            Defaults to SemLA's 5.
        tau (float): As in :func:`inverse_distance_weights`.
        relative (bool): Whether distances are divided by that of the
            nearest expert, so that ``tau`` holds for any embedding and
            metric. Defaults to True.
        uniform (bool): Whether they share equally instead. Defaults to
            False.

    Returns:
        Tensor: (B, E), rows sum to 1.
    """
    # stable: of equally near experts, the one learned first
    values_BK, indices_BK = distances_BE.sort(dim=1, stable=True)
    values_BK, indices_BK = values_BK[:, :top_k], indices_BK[:, :top_k]
    if uniform:
        weights = torch.full_like(values_BK, 1 / values_BK.shape[1])
    else:
        if relative:
            nearest = values_BK[:, :1]
            # the nearest at zero: the others are infinitely farther
            values_BK = torch.where(nearest > 0, values_BK / nearest,
                                    values_BK)
        weights = inverse_distance_weights(values_BK, tau)
    return torch.zeros_like(distances_BE).scatter_(1, indices_BK, weights)


def check_ood_policy(policy: str) -> str:
    """Return the policy for out-of-distribution images.

    Raises:
        ValueError: If there is none of this name.
    """
    if policy not in OOD_POLICIES:
        raise ValueError(f'model.ood_policy must be one of {OOD_POLICIES}, '
                         f'got {policy!r}')
    return policy


def apply_ood_policy(routing: Routing, policy: str) -> Routing:
    """Change the routing of out-of-distribution images.

    Args:
        routing (Routing): What the gate said.
        policy (str): 'nearest': it stays. 'fuse': weights of the nearest
            experts, see :func:`nearest_weights`. 'base': no expert.
            'abstain': no prediction.

    Returns:
        Routing: Of the same images.

    Raises:
        ValueError: If experts are to be fused by distances that the gate
            does not measure.
    """
    flagged = routing.ood
    if policy == 'nearest' or not flagged.any():
        return routing
    weights = routing.weights.clone()
    where = flagged.to(weights.device)
    if policy == 'fuse':
        distances = routing.distances[flagged.to(routing.distances.device)]
        if distances.isnan().any():
            raise ValueError(
                "model.ood_policy='fuse' weighs experts by distances, which "
                'the gate has not: use PrototypeGate or SemLAGate, or another '
                'policy')
        weights[where] = nearest_weights(distances).to(weights)
        return replace(routing, weights=weights)
    weights[where] = 0
    abstains = flagged if policy == 'abstain' else None
    return replace(routing, weights=weights, abstains=abstains)
