# SPDX-License-Identifier: Apache-2.0
"""SemLA's weights: softmax of inverse distances."""
from __future__ import annotations

import torch
from torch import Tensor

# Shape legend: B images, E experts, K chosen experts

#: K of SemLA (Qorbani et al., CVPR 2025, arXiv 2503.21780).
TOP_K = 5
#: Temperature for distances relative to the nearest one. SemLA's 0.05 is for
#: CLIP's embeddings, whose distances have the size of 8.
RELATIVE_TAU = 0.4


def inverse_distance_weights(distances_BK: Tensor, tau: float) -> Tensor:
    """``w = softmax_k(1 / (d_k tau))``, the limit of it where a ``d`` is 0.

    With an image that lies on a prototype the formula divides by zero; its
    limit is all weight on the experts at distance zero, in equal parts.

    Args:
        distances_BK (Tensor): (B, K), not negative.
        tau (float): Temperature, above 0.

    Returns:
        Tensor: (B, K), rows sum to 1.
    """
    scores = 1 / (distances_BK * tau)
    # so near that the inverse overflows counts as zero
    at_zero = scores.isinf()
    exact = at_zero.any(1, keepdim=True)
    scores = scores.masked_fill(exact & ~at_zero, -torch.inf)
    return scores.masked_fill(at_zero, 0).softmax(1)


def nearest_weights(distances_BE: Tensor,
                    top_k: int = TOP_K,
                    tau: float = RELATIVE_TAU,
                    relative: bool = True,
                    uniform: bool = False) -> Tensor:
    """Weights of the ``top_k`` nearest of all experts.

    Args:
        distances_BE (Tensor): (B, E).
        top_k (int): Experts per image; fewer where there are fewer.
            Defaults to SemLA's 5.
        tau (float): As in :func:`inverse_distance_weights`.
        relative (bool): Whether distances are divided by that of the
            nearest expert, so that ``tau`` holds for any embedding and
            metric. Defaults to True.
        uniform (bool): Whether they share equally instead. Defaults to
            False.

    Returns:
        Tensor: (B, E), rows sum to 1.
    """
    # stable: of equally near experts, the one learned first
    values_BK, indices_BK = distances_BE.sort(dim=1, stable=True)
    values_BK, indices_BK = values_BK[:, :top_k], indices_BK[:, :top_k]
    if uniform:
        weights = torch.full_like(values_BK, 1 / values_BK.shape[1])
    else:
        if relative:
            nearest = values_BK[:, :1]
            # the nearest at zero: the others are infinitely farther
            values_BK = torch.where(nearest > 0, values_BK / nearest,
                                    values_BK)
        weights = inverse_distance_weights(values_BK, tau)
    return torch.zeros_like(distances_BE).scatter_(1, indices_BK, weights)
