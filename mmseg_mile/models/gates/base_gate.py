# SPDX-License-Identifier: Apache-2.0
"""What every gate does."""
from __future__ import annotations

from abc import ABCMeta, abstractmethod
from typing import Dict, Optional, Sequence, Tuple

import torch
from torch import Tensor

from mmseg_mile.structures import Routing

# Shape legend: B images, D embedding, E experts


class BaseGate(metaclass=ABCMeta):
    """Chooses experts for images.

    A gate learns once per task, from embeddings of the task's training
    images, and keeps statistics only. A gate that looks at no embedding
    still hears of every task.
    """

    #: How many embeddings of a training image :meth:`fit` wants: its own,
    #: and those of disturbed copies of it.
    num_looks = 1
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
                or (N, L, D) with ``num_looks`` L of each, its own first;
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
