# SPDX-License-Identifier: Apache-2.0
"""What a gate decides for a batch of images."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Sequence, Tuple

from torch import Tensor

# Shape legend: B images, E experts


@dataclass(frozen=True)
class Routing:
    """Chosen experts, their weights and the distances to all experts.

    Args:
        expert_names (tuple[str]): Names along axis E.
        weights (Tensor): (B, E), rows sum to 1; a hard routing is one-hot.
        distances (Tensor): (B, E), the gate's distances; NaN where the gate
            measures none.
        unfamiliar (Tensor): (B,) bool, True where the image lies further
            from its nearest expert than that expert's own images do.
    """
    expert_names: Tuple[str, ...]
    weights: Tensor
    distances: Tensor
    unfamiliar: Tensor

    def __len__(self) -> int:
        return self.weights.shape[0]

    def top_expert(self, index: int) -> str:
        """Name of the expert with the largest weight for image ``index``."""
        return self.expert_names[int(self.weights[index].argmax())]

    def mixture(self, index: int) -> Dict[str, float]:
        """Experts of image ``index`` with a weight above zero."""
        row = self.weights[index].tolist()
        return {n: w for n, w in zip(self.expert_names, row) if w > 0}

    def take(self, indices: Sequence[int]) -> 'Routing':
        """The routing of some of the images, in the order given."""
        chosen = list(indices)
        return Routing(self.expert_names, self.weights[chosen],
                       self.distances[chosen], self.unfamiliar[chosen])

    def groups(self) -> List[Tuple[Dict[str, float], List[int]]]:
        """Images that share one mixture, in order of first appearance.

        Returns:
            list[tuple[dict[str, float], list[int]]]: Mixture and the
            indices of its images.
        """
        found: Dict[Tuple[Tuple[str, float], ...], List[int]] = {}
        for index in range(len(self)):
            key = tuple(self.mixture(index).items())
            found.setdefault(key, []).append(index)
        return [(dict(key), indices) for key, indices in found.items()]
