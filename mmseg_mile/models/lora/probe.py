# SPDX-License-Identifier: Apache-2.0
"""Images to find out with what a backbone does."""
from __future__ import annotations

import torch
from torch import Tensor, nn


def probe_images(backbone: nn.Module, count: int, side: int = 128) -> Tensor:
    """Images that a backbone accepts, different from each other.

    Args:
        backbone (nn.Module): Its first convolution says how many channels
            an image has, its ``img_size``, if it is bound to one, its size.
        count (int): Number of images.
        side (int): Height and width otherwise. Defaults to 128.

    Returns:
        Tensor: (count, C, H, W) in [-1, 1], always the same values.
    """
    size = getattr(backbone, 'img_size', side)
    height, width = (size, size) if isinstance(size, int) else tuple(size)[:2]
    channels = next((m.in_channels
                     for m in backbone.modules() if isinstance(m, nn.Conv2d)),
                    3)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, channels, height, width, generator=generator)
    return (2 * images - 1).to(next(backbone.parameters()))
