# SPDX-License-Identifier: Apache-2.0
"""Outlines in metres."""
from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import ArrayLike


@functools.cache
def _circle(corners: int) -> np.ndarray:
    angle = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """Axis-parallel rectangle."""
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def ellipse(x: float,
            y: float,
            rx: float,
            ry: float,
            corners: int = 14) -> np.ndarray:
    """Ellipse around (x, y)."""
    return _circle(corners) * (rx, ry) + (x, y)


def blob(rng: np.random.Generator,
         x: float,
         y: float,
         rx: float,
         ry: float,
         corners: int = 18,
         rough: float = 0.16) -> np.ndarray:
    """Ellipse with a ragged edge: crowns, bushes, smoke."""
    outline = ellipse(0., 0., rx, ry, corners)
    outline *= 1 + rough * rng.uniform(-1, 1, (corners, 1))
    return outline + (x, y)


def limb(start: tuple[float, float], end: tuple[float, float],
         width: float) -> np.ndarray:
    """Bar of the given width between two points."""
    (x0, y0), (x1, y1) = start, end
    share = width / 2 / max(math.hypot(x1 - x0, y1 - y0), 1e-6)
    dx, dy = share * (y0 - y1), share * (x1 - x0)
    return np.array([[x0 - dx, y0 - dy], [x1 - dx, y1 - dy],
                     [x1 + dx, y1 + dy], [x0 + dx, y0 + dy]])


def placed(points: ArrayLike,
           x: float,
           scale: tuple[float, float],
           y: float = 0.) -> np.ndarray:
    """Stretch a unit outline and move it to (x, y)."""
    return np.asarray(points, float) * scale + (x, y)
