# SPDX-License-Identifier: Apache-2.0
"""Gates that ask no distance: fixed, oracle, random, wrong, and none."""
from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Optional, Sequence

import torch
from torch import Tensor

from mmseg.registry import TASK_UTILS
from mmseg_mile.structures import Routing
from .base_gate import BaseGate
from .prototype_gate import PrototypeGate


@TASK_UTILS.register_module()
class FixedGate(BaseGate):
    """Routes every image to ``expert``.

    Args:
        expert (str): Name of a learned task.
    """

    def __init__(self, expert: str) -> None:
        super().__init__()
        self.expert = expert

    def route(self, embeddings: Optional[Tensor],
              tasks: Sequence[Optional[str]]) -> Routing:
        """See :meth:`BaseGate.route`."""
        self._check_ready()
        return self._one_hot([self.expert] * len(tasks))


@TASK_UTILS.register_module()
class NoExpertGate(PrototypeGate):
    """Sends every image to the base without an expert.

    The zero-shot row of SemLA (arXiv 2503.21780): a model before it has
    learned anything of a domain. Distances are measured all the same, for
    the decode head of the nearest expert, and for the flag. Arguments are
    those of :class:`PrototypeGate`.
    """

    def route(self, embeddings: Optional[Tensor],
              tasks: Sequence[Optional[str]]) -> Routing:
        """See :meth:`BaseGate.route`; ``tasks`` is not looked at."""
        routing = super().route(embeddings, tasks)
        return replace(routing, weights=torch.zeros_like(routing.weights))


@TASK_UTILS.register_module()
class OracleGate(BaseGate):
    """Routes each image to the expert of its true task.

    Args:
        fall_back (bool): Whether an image whose task has no expert gets the
            expert learned last, as a stream needs that evaluates tasks to
            come. Defaults to False: it is refused.
    """

    needs_task_label = True

    def __init__(self, fall_back: bool = False) -> None:
        super().__init__()
        self.fall_back = fall_back

    def route(self, embeddings: Optional[Tensor],
              tasks: Sequence[Optional[str]]) -> Routing:
        """See :meth:`BaseGate.route`.

        Raises:
            ValueError: If an image comes without its task, or its task has
                no expert.
        """
        self._check_ready()
        chosen = []
        for task in tasks:
            if task is None:
                raise ValueError(
                    "OracleGate needs each image's task: set metainfo "
                    "'task' on its data sample, or use PrototypeGate")
            if self.fall_back and task not in self._names:
                task = self.expert_names[-1]
            chosen.append(task)
        return self._one_hot(chosen)


@TASK_UTILS.register_module()
class RandomGate(BaseGate):
    """Routes each image to an expert drawn uniformly.

    What is drawn depends on the seed and the image alone, so an evaluation
    that was interrupted, or shared by several processes, draws the same.

    Args:
        seed (int): Of the draws. Defaults to 0.
    """

    needs_embeddings = True

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def route(self, embeddings: Optional[Tensor],
              tasks: Sequence[Optional[str]]) -> Routing:
        """See :meth:`BaseGate.route`."""
        self._check_ready()
        assert embeddings is not None
        names = self.expert_names
        return self._one_hot(
            [names[self._draw(row) % len(names)] for row in embeddings])

    def _draw(self, embedding: Tensor) -> int:
        """A number of 64 bits for an image with a (D,) embedding."""
        content = embedding.cpu().numpy().tobytes()
        digest = hashlib.sha256(str(self.seed).encode() + content).digest()
        return int.from_bytes(digest[:8], 'big')


@TASK_UTILS.register_module()
class MismatchedGate(RandomGate):
    """Routes each image to an expert of another task than its own.

    One of the others, drawn uniformly by seed and image as
    :class:`RandomGate` does, so that a score is the mean over all wrong
    experts; a cyclic choice would show one of them per task. As long as
    there is one expert only, it is chosen.

    Args:
        seed (int): Of the draws. Defaults to 0.
    """

    needs_task_label = True

    def route(self, embeddings: Optional[Tensor],
              tasks: Sequence[Optional[str]]) -> Routing:
        """See :meth:`BaseGate.route`.

        Raises:
            ValueError: If an image comes without its task.
        """
        self._check_ready()
        assert embeddings is not None
        names = self.expert_names
        chosen = []
        for task, row in zip(tasks, embeddings):
            if task is None:
                raise ValueError(
                    "MismatchedGate needs each image's task: set metainfo "
                    "'task' on its data sample, or use RandomGate")
            wrong = [name for name in names if name != task] or names
            chosen.append(wrong[self._draw(row) % len(wrong)])
        return self._one_hot(chosen)
