# SPDX-License-Identifier: Apache-2.0
"""Sampling of maps at points, for mmseg's mask losses.

mmseg takes ``point_sample`` from ``mmcv.ops``, which cannot be imported where
mmcv came without compiled operators, although this one is not compiled: it is
torch's ``grid_sample`` in other units.
"""
from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

import mmseg.models.decode_heads.san_head as san_head
import mmseg.models.utils.point_sample as uncertain_points
import mmseg.utils.mask_classification as mask_classification


def point_sample(maps: Tensor,
                 points: Tensor,
                 align_corners: bool = False,
                 **kwargs: Any) -> Tensor:
    """Bilinear values of maps at points.

    Args:
        maps (Tensor): (N, C, H, W).
        points (Tensor): (N, P, 2), x and y from 0 to 1, the image's borders.
        align_corners (bool): See ``grid_sample``. Defaults to False.
        **kwargs: Of ``grid_sample``.

    Returns:
        Tensor: (N, C, P).
    """
    grid = 2 * points[:, :, None] - 1
    sampled = F.grid_sample(maps, grid, align_corners=align_corners, **kwargs)
    return sampled[..., 0]


def provide_point_sample() -> None:
    """Fill the gap in mmseg where mmcv's own function is missing."""
    for module in (san_head, uncertain_points, mask_classification):
        if module.point_sample is None:
            module.point_sample = point_sample
    if san_head.get_uncertain_point_coords_with_randomness is None:
        san_head.get_uncertain_point_coords_with_randomness = (
            uncertain_points.get_uncertain_point_coords_with_randomness)
