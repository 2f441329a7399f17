# SPDX-License-Identifier: Apache-2.0
"""Chance, as a lower bound."""
from __future__ import annotations

from typing import Optional, Sequence

import torch
from torch import Tensor

from mmseg.registry import TASK_UTILS
from mmseg_mile.structures import Routing
from .base_gate import BaseGate


@TASK_UTILS.register_module()
class RandomGate(BaseGate):
    """Routes each image to an expert drawn uniformly.

    Args:
        seed (int): Of the gate's own generator. Defaults to 0.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)

    def route(self, embeddings: Optional[Tensor],
              tasks: Sequence[Optional[str]]) -> Routing:
        """See :meth:`BaseGate.route`."""
        self._check_ready()
        names = self.expert_names
        drawn = torch.randint(
            len(names), (len(tasks), ), generator=self._generator)
        return self._one_hot([names[i] for i in drawn.tolist()])
