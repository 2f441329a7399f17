# SPDX-License-Identifier: Apache-2.0
"""From logits on a coarse grid to a label map of the image's size."""
from __future__ import annotations

from typing import Sequence, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

# Shape legend: C classes, h x w grid of the logits, H x W image

# Resized logits that are in memory at a time. Smaller strips, which would
# stay in the caches, measured slower than what they save.
_STRIP_VALUES = 1 << 23


def label_map(logits: Tensor, size: Tuple[int, int],
              align_corners: bool) -> Tensor:
    """Class with the largest logit after bilinear resizing.

    Large images are resized strip by strip, so that no full-size copy of
    every class exists at once. ``max`` stands for ``argmax``, which is
    several times slower on CPUs; both take the first of equal classes.

    Args:
        logits (Tensor): (C, h, w) float32.
        size (tuple[int, int]): H, W.
        align_corners (bool): As in ``F.interpolate``.

    Returns:
        Tensor: (H, W) int64.
    """
    # class by class, the layout that resizing and max are fast in
    logits = logits.contiguous()
    height, width = size
    rows = max(1, _STRIP_VALUES // (len(logits) * width))
    if rows >= height or logits.shape[1:] == (height, width):
        return _largest(resize_logits(logits[None], size, align_corners)[0])
    above, below, share = _source_rows(logits.shape[1], height, align_corners,
                                       logits.device)
    labels = logits.new_empty(size, dtype=torch.long)
    for start in range(0, height, rows):
        strip = slice(start, min(start + rows, height))
        blended = torch.lerp(logits[:, above[strip]], logits[:, below[strip]],
                             share[strip, None])
        labels[strip] = _largest(
            resize_logits(blended[None], (len(above[strip]), width),
                          align_corners)[0])
    return labels


def resize_logits(logits: Tensor, size: Sequence[int],
                  align_corners: bool) -> Tensor:
    """(n, C, h, w) logits on another grid, bilinear; as they are if equal."""
    if logits.shape[2:] == tuple(size):
        return logits
    return F.interpolate(
        logits, tuple(size), mode='bilinear', align_corners=align_corners)


def _largest(logits: Tensor) -> Tensor:
    return logits.max(dim=0).indices


def _source_rows(height: int, new_height: int, align_corners: bool,
                 device: torch.device) -> Tuple[Tensor, Tensor, Tensor]:
    """The two rows that each new row lies between, and the lower's share."""
    new = torch.arange(new_height, dtype=torch.float32, device=device)
    if align_corners:
        at = new * ((height - 1) / max(1, new_height - 1))
    else:
        at = ((new + 0.5) * (height / new_height) - 0.5).clamp_min(0)
    above = at.long().clamp_max(height - 1)
    return above, (above + 1).clamp_max(height - 1), at - above
