# SPDX-License-Identifier: Apache-2.0
"""The decision of a gate for a batch of images."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from torch import Tensor

# Shape legend: B images, E experts


@dataclass(frozen=True)
class Routing:
    """Chosen experts, their weights and the distances to all experts.

    Args:
        expert_names (tuple[str]): Names along axis E.
        weights (Tensor): (B, E), rows sum to 1, a hard routing is one-hot;
            a row of zeros is for the base without an expert.
        distances (Tensor): (B, E), the gate's distances; NaN where the gate
            measures none.
        ood (Tensor): (B,) bool, True where the image lies further
            from its nearest expert than that expert's own images do.
        abstains (Tensor, optional): (B,) bool, True where the image gets no
            prediction. Defaults to None: nowhere.
        ood_score (Tensor, optional): (B,), what ``ood`` is made
            of: 1 at the limit, larger for stranger images. Defaults to None:
            the gate does not measure it.
        details (Mapping[str, Tensor]): More of it, (B, ...) by a name that
            the method gives: weights per layer, region or sensor. Defaults
            to {}.
    """
    expert_names: Tuple[str, ...]
    weights: Tensor
    distances: Tensor
    ood: Tensor
    abstains: Optional[Tensor] = None
    ood_score: Optional[Tensor] = None
    details: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.weights.shape[0]

    def top_expert(self, index: int) -> str:
        """Name of the expert with the largest weight for image ``index``.

        Without any weight, of the nearest one; of the first one learned
        where no distance was measured.
        """
        if not self.weights[index].any():
            far = self.distances[index].nan_to_num(float('inf'))
            return self.expert_names[int(far.argmin())]
        return self.expert_names[int(self.weights[index].argmax())]

    def mixture(self, index: int) -> Dict[str, float]:
        """Experts of image ``index`` with a weight above zero."""
        row = self.weights[index].tolist()
        return {n: w for n, w in zip(self.expert_names, row) if w > 0}

    def take(self, indices: Sequence[int]) -> 'Routing':
        """The routing of some of the images, in the order given."""
        chosen = list(indices)
        abstains, ood_score = (None if values is None else values[chosen]
                               for values in (self.abstains, self.ood_score))
        details = {key: value[chosen] for key, value in self.details.items()}
        return Routing(self.expert_names, self.weights[chosen],
                       self.distances[chosen], self.ood[chosen], abstains,
                       ood_score, details)

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
