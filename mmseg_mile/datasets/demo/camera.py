# SPDX-License-Identifier: Apache-2.0
"""The pinhole camera behind the windscreen."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Camera:
    """Level pinhole camera, ``mount`` metres above a flat street.

    World axes: x to the right, y up from the street, z ahead, in metres.

    Args:
        height (int): Image height in pixels.
        width (int): Image width in pixels.
        focal (float): Focal length in pixels.
        center_x (float): Column of the vanishing point.
        horizon (float): Row of the vanishing point.
        mount (float): Height of the camera above the street.
    """
    height: int
    width: int
    focal: float
    center_x: float
    horizon: float
    mount: float

    def project(self, x: np.ndarray | float, y: np.ndarray | float,
                z: np.ndarray | float) -> np.ndarray:
        """Project world coordinates, N of each or one, to (N, 2) pixels."""
        zoom = self.focal / z
        pixels = np.empty((max(np.size(x), np.size(y), np.size(z)), 2))
        pixels[:, 0] = self.center_x + zoom * x
        pixels[:, 1] = self.horizon + zoom * (self.mount - y)
        return pixels
