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
    """Routes each image to the expert of its true task."""

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
            chosen.append(task)
        return self._one_hot(chosen)
