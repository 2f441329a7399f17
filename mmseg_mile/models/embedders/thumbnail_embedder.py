# SPDX-License-Identifier: Apache-2.0
"""The image itself, small."""
from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mmseg.registry import TASK_UTILS

# Shape legend: B images, C channels, H x W pixels


@TASK_UTILS.register_module()
class ThumbnailEmbedder:
    """An area-averaged copy of the image, one size for all images.

    For gates that look at pixels, such as :class:`ConvAutoencoderGate`.
    Images of another aspect ratio are squeezed.

    Args:
        size (Sequence[int]): Height and width. Defaults to (48, 64).

    Raises:
        ValueError: If a side is less than 1.
    """

    def __init__(self, size: Sequence[int] = (48, 64)) -> None:
        if len(size) != 2 or min(size) < 1:
            raise ValueError('embedder.size must be height and width, both '
                             f'>= 1, got {tuple(size)}')
        self.size = tuple(size)

    @torch.no_grad()
    def __call__(self, backbone: Any, images: Tensor) -> Tensor:
        """Embed a batch.

        Args:
            backbone (LoRAExpertBackbone): Not asked.
            images (Tensor): (B, C, H, W), normalised as for the segmentor.

        Returns:
            Tensor: (B, C * height * width) float32, channels outermost.
        """
        small = F.interpolate(images.float(), size=self.size, mode='area')
        return small.flatten(1)
