# SPDX-License-Identifier: Apache-2.0
"""A wrong expert for every image: what routing is worth."""
from __future__ import annotations

from typing import Optional, Sequence

from torch import Tensor

from mmseg.registry import TASK_UTILS
from mmseg_mile.structures import Routing
from .random_gate import RandomGate


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
