# SPDX-License-Identifier: Apache-2.0
"""Mean and standard deviation of feature maps over space."""
from __future__ import annotations

import math

import torch
from torch import Tensor

# Shape legend: B images, C channels, L positions


def deviation(features: Tensor, mean: Tensor) -> Tensor:
    """Standard deviation over space, dividing by L.

    Like ``features.std(2, unbiased=False)``, which takes several times as
    long on a CPU.

    Args:
        features (Tensor): (B, C, L).
        mean (Tensor): (B, C), over space.

    Returns:
        Tensor: (B, C).
    """
    offsets = features - mean[..., None]
    return torch.linalg.vector_norm(
        offsets, dim=2) / math.sqrt(features.shape[2])
