# SPDX-License-Identifier: Apache-2.0
"""Chance, as a lower bound."""
from __future__ import annotations

import hashlib
from typing import Optional, Sequence

from torch import Tensor

from mmseg.registry import TASK_UTILS
from mmseg_mile.structures import Routing
from .base_gate import BaseGate


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
