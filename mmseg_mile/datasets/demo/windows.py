# SPDX-License-Identifier: Apache-2.0
"""Where the facades have windows, in the same place for every camera."""
from __future__ import annotations

import numpy as np

from .pixels import fraction

_STOREY = 3.1
_FARTHEST = 120.
# Each building has windows of its own size, each window its own number.
_DICE = np.random.default_rng(0).random((4, 1024)).astype(np.float32)


def window_grid(facade: np.ndarray, part: np.ndarray, along: np.ndarray,
                y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Windows of the facades.

    Args:
        facade (np.ndarray): Mask of facade pixels.
        part (np.ndarray): Index of the polygon at each pixel.
        along (np.ndarray): Metres along the facade.
        y (np.ndarray): Metres above the street.
        z (np.ndarray): Metres from the camera.

    Returns:
        tuple[np.ndarray, np.ndarray]: Mask of window pixels, and a number in
        [0, 1) that is the same all over one window.
    """
    part = part & 1023
    column = along / (2. + 1.6 * _DICE[0].take(part)) + _DICE[1].take(part)
    row = (y - .3) / _STOREY
    across, up = np.abs(fraction(column) - .5), fraction(row)
    shop = (row < 1) & (_DICE[2] < .5).take(part)
    inside = np.where(shop, (across < .42) & (up > .12),
                      (across < .26) & (up > .30))
    inside &= facade & (z < _FARTHEST) & (row > 0) & (up < .82)
    place = np.floor(column).astype(np.int32) * 37
    place += np.floor(row).astype(np.int32) * 101
    return inside, _DICE[3].take((place + part * 29) & 1023)
