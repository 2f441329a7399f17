# SPDX-License-Identifier: Apache-2.0
"""SemLA's gate: the nearest experts, weighted by inverse distance."""
from __future__ import annotations

from typing import Any, Optional, Sequence

from torch import Tensor

from mmseg.registry import TASK_UTILS
from mmseg_mile.gates.base_gate import (TOP_K, check_bounds, check_choice,
                                        nearest_weights)
from mmseg_mile.gates.prototype_gate import PrototypeGate
from mmseg_mile.structures import Routing

_WEIGHTINGS = ('inverse_distance', 'uniform')


@TASK_UTILS.register_module()
class SemLAGate(PrototypeGate):
    """Retrieves the K nearest experts and says how to fuse them.

    SemLA (Qorbani et al., CVPR 2025, arXiv 2503.21780): with the distances
    ``d_i`` of an image to the mean embedding of each task, the weights are
    ``softmax_i(1 / (d_i tau))`` over the K nearest. An image on a mean gets
    the limit of that, see :func:`inverse_distance_weights`.

    The paper's distance is Euclidean, and its ``tau`` fits the unit of
    CLIP's image embeddings, which are not normalised; ``relative`` frees it
    of the unit. ``metric``, ``num_prototypes``, ``shrinkage`` and the flag
    for out-of-distribution images are those of :class:`PrototypeGate`.

    Args:
        top_k (int): K, experts per image; fewer where there are fewer.
            Defaults to 5.
        tau (float): Temperature; smaller values sharpen the weights.
            Defaults to 0.05.
        relative (bool): Whether distances are divided by that of the
            nearest expert. Defaults to False.
        weighting (str): 'inverse_distance', or 'uniform' over the K nearest;
            the paper's ablation shares equally among all, which is a
            ``top_k`` as large as the library. Defaults to
            'inverse_distance'.
        metric (str): As in :class:`PrototypeGate`. Defaults to 'euclidean'.
        **kwargs: As in :class:`PrototypeGate`, without ``temperature``.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self,
                 top_k: int = TOP_K,
                 tau: float = 0.05,
                 relative: bool = False,
                 weighting: str = 'inverse_distance',
                 metric: str = 'euclidean',
                 **kwargs: Any) -> None:
        if 'temperature' in kwargs:
            raise ValueError('SemLAGate has no temperature: set gate.tau')
        super().__init__(metric=metric, top_k=top_k, **kwargs)
        check_bounds('tau', tau, 0, open_low=True)
        check_choice('weighting', weighting, _WEIGHTINGS)
        self.tau = tau
        self.relative = relative
        self.weighting = weighting

    def route(self, embeddings: Optional[Tensor],
              tasks: Sequence[Optional[str]]) -> Routing:
        """See :meth:`BaseGate.route`; ``tasks`` is not looked at."""
        assert embeddings is not None
        distances_BE = self.distances(embeddings)
        weights_BE = nearest_weights(distances_BE, self.top_k, self.tau,
                                     self.relative,
                                     self.weighting == 'uniform')
        return self._routing(embeddings, distances_BE, weights_BE)
