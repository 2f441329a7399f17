# SPDX-License-Identifier: Apache-2.0
"""Small copies of images, for embedders."""
from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

_MIN_SIDE = 32


def small_copy(images: Tensor,
               scale: float,
               min_side: int = _MIN_SIDE) -> Tensor:
    """Area-averaged copy, never below ``min_side`` pixels a side.

    Args:
        images (Tensor): (B, C, H, W).
        scale (float): Of each side, in (0, 1].
        min_side (int): In pixels. Defaults to 32.

    Returns:
        Tensor: (B, C, h, w); the images themselves where that is their size.
    """
    height, width = images.shape[2:]
    size = [
        min(side, max(min_side, round(side * scale)))
        for side in (height, width)
    ]
    if size == [height, width]:
        return images
    return F.interpolate(images, size=size, mode='area')
