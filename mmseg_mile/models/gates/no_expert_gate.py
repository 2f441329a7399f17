# SPDX-License-Identifier: Apache-2.0
"""No expert for any image."""
from __future__ import annotations

from dataclasses import replace
from typing import Optional, Sequence

import torch
from torch import Tensor

from mmseg.registry import TASK_UTILS
from mmseg_mile.structures import Routing
from .prototype_gate import PrototypeGate


@TASK_UTILS.register_module()
class NoExpertGate(PrototypeGate):
    """Sends every image to the base without an expert.

    What a model is worth before it has learned anything of a domain: SemLA's
    zero-shot (arXiv 2503.21780). Distances are measured all the same, to
    know whose head speaks, and for the flag. Arguments are those of
    :class:`PrototypeGate`.
    """

    def route(self, embeddings: Optional[Tensor],
              tasks: Sequence[Optional[str]]) -> Routing:
        """See :meth:`BaseGate.route`; ``tasks`` is not looked at."""
        routing = super().route(embeddings, tasks)
        return replace(routing, weights=torch.zeros_like(routing.weights))
