# SPDX-License-Identifier: Apache-2.0
"""A scene as painted polygons: what every rendering and label starts from.

Later parts cover earlier ones. Labels are rasterised from the very polygons
that a data set ships, so that the two can never disagree.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike

from .camera import Camera

MATERIALS = ('sky', 'asphalt', 'marking', 'paving', 'curb', 'dirt', 'grass',
             'facade', 'glass', 'foliage', 'bark', 'wood', 'concrete', 'metal',
             'rubber', 'skin', 'cloth', 'lamp', 'sign', 'hood', 'hill')
SURFACES = ('ground', 'wall', 'upright', 'sky', 'hood')
SKY_DISTANCE = 1000.

# Polygons are clipped just outside the frame: an edge that runs along the
# clipping window must not be drawn into the visible label map.
_MARGIN = 3.


class Paint(NamedTuple):
    """How a part looks to the eye and to the infrared camera.

    ``heat`` is in degrees above the air, ``glow`` is light that it emits.
    """
    material: str
    color: tuple[float, float, float]
    heat: float = 0.
    glow: float = 0.


@dataclass(frozen=True)
class Part:
    """One polygon. ``label=None`` is a detail on whatever lies below it.

    ``distance`` is the depth of an upright part and the sideways distance
    of a wall, both in metres.
    """
    label: str | None
    outline: np.ndarray
    surface: str
    distance: float
    paint: Paint


@dataclass
class Sketch:
    """The parts of one scene in painting order, and its street lamps."""
    camera: Camera
    parts: list[Part] = field(default_factory=list)
    lamps: list[tuple[float, float, float]] = field(default_factory=list)
    road: tuple[float, float] = (-4., 4.)

    def strip(self, label: str | None, x: tuple[float, float],
              z: tuple[float, float], paint: Paint) -> None:
        """Add a rectangle on the street."""
        across = np.array([x[0], x[1], x[1], x[0]])
        ahead = np.array([z[0], z[0], z[1], z[1]])
        outline = self.camera.project(across, 0., ahead)
        self._add(label, outline, 'ground', 0., paint)

    def wall(self, label: str | None, x: float, points: ArrayLike,
             paint: Paint) -> None:
        """Add a polygon of (z, y) points in a plane along the street."""
        points = np.asarray(points, float)
        outline = self.camera.project(x, points[:, 1], points[:, 0])
        self._add(label, outline, 'wall', abs(x), paint)

    def upright(self, label: str | None, z: float, points: ArrayLike,
                paint: Paint) -> None:
        """Add a polygon of (x, y) points in a plane across the street."""
        points = np.asarray(points, float)
        outline = self.camera.project(points[:, 0], points[:, 1], z)
        self._add(label, outline, 'upright', z, paint)

    def hull(self, label: str | None, z: float, points: ArrayLike,
             paint: Paint) -> None:
        """Add the outline of a convex body given by (x, y, z) points."""
        flat = self.camera.project(*np.asarray(points, float).T)
        outline = cv2.convexHull(flat.astype(np.float32))[:, 0]
        self._add(label, outline, 'upright', z, paint)

    def screen(self, label: str | None, points: ArrayLike, surface: str,
               paint: Paint) -> None:
        """Add a polygon of image points: the sky or the own bonnet."""
        distance = SKY_DISTANCE if surface == 'sky' else 1.
        self._add(label, np.asarray(points, float), surface, distance, paint)

    def _add(self, label: str | None, outline: np.ndarray, surface: str,
             distance: float, paint: Paint) -> None:
        outline = _clip(outline, self.camera.width, self.camera.height)
        if len(outline) >= 3:
            self.parts.append(Part(label, outline, surface, distance, paint))


def _clip(outline: np.ndarray, width: int, height: int) -> np.ndarray:
    """Clip a polygon to the frame, edge by edge (Sutherland-Hodgman)."""
    low, high = outline.min(axis=0).tolist(), outline.max(axis=0).tolist()
    last = width - 1 + _MARGIN, height - 1 + _MARGIN
    if min(high) < 0 or low[0] > width - 1 or low[1] > height - 1:
        return np.empty((0, 2))
    sides = [(axis, 1., -_MARGIN) for axis in (0, 1) if low[axis] < -_MARGIN]
    sides += [(axis, -1., -last[axis]) for axis in (0, 1)
              if high[axis] > last[axis]]
    for axis, sign, bound in sides:
        gap = (sign * outline[:, axis] - bound).tolist()
        kept = []
        for i, here in enumerate(gap):
            before = gap[i - 1]
            if (here >= 0) != (before >= 0):
                share = before / (before - here)
                step = outline[i] - outline[i - 1]
                kept.append(outline[i - 1] + share * step)
            if here >= 0:
                kept.append(outline[i])
        if len(kept) < 3:
            return np.empty((0, 2))
        outline = np.array(kept)
    return outline
