# SPDX-License-Identifier: Apache-2.0
"""The true task, as an upper bound."""
from __future__ import annotations

from typing import Optional, Sequence

from torch import Tensor

from mmseg.registry import TASK_UTILS
from mmseg_mile.structures import Routing
from .base_gate import BaseGate


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
