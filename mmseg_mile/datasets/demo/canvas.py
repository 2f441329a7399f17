# SPDX-License-Identifier: Apache-2.0
"""Labelled polygons before a pinhole camera.

World axes: x to the right, y up from the street, z ahead, in metres. Later
parts cover earlier ones. Labels are the names of IDD, plus 'terrain'.
"""
from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import List, NamedTuple, Optional, Tuple

import numpy as np
from numpy.typing import ArrayLike

Color = Tuple[float, float, float]
Range = Tuple[float, float]
Rng = np.random.Generator

MATERIALS = ('sky', 'asphalt', 'marking', 'paving', 'dirt', 'grass', 'facade',
             'glass', 'foliage', 'wood', 'concrete', 'metal', 'rubber', 'skin',
             'cloth', 'lamp', 'sign', 'hood')
PLANES = ('ground', 'wall', 'upright', 'sky', 'hood')
SKY_DISTANCE = 1000.


class Look(NamedTuple):
    """A surface to the eye and to the infrared camera.

    ``heat`` is in degrees above the air, ``glow`` is light that it emits.
    """
    material: str
    color: Color
    heat: float = 0.
    glow: float = 0.


class Part(NamedTuple):
    """One polygon; ``label=None`` is a detail on whatever lies below it.

    ``outline`` is (N, 2) in pixels; ``distance`` the depth of an upright
    part and the sideways distance of a wall, in metres.
    """
    label: Optional[str]
    outline: np.ndarray
    plane: str
    distance: float
    look: Look


@dataclass
class Scene:
    """Parts of one scene in painting order, seen by a level camera.

    Args:
        height (int): Image height in pixels.
        width (int): Image width in pixels.
        focal (float): Focal length in pixels.
        center (float): Column of the vanishing point.
        horizon (float): Row of the vanishing point.
        mount (float): Height of the camera above the street.
    """
    height: int
    width: int
    focal: float
    center: float
    horizon: float
    mount: float
    parts: List[Part] = field(default_factory=list)
    lamps: List[Tuple[float, float, float]] = field(default_factory=list)
    road: Range = (-4., 4.)

    def project(self, points: ArrayLike) -> np.ndarray:
        """(N, 3) world points -> (N, 2) pixels."""
        x, y, z = np.asarray(points, float).T
        zoom = self.focal / z
        return np.stack(
            [self.center + zoom * x, self.horizon + zoom * (self.mount - y)],
            1)

    def ground(self, label: Optional[str], x: Range, z: Range,
               look: Look) -> None:
        """A rectangle on the street."""
        corners = [(x[0], 0, z[0]), (x[1], 0, z[0]), (x[1], 0, z[1]),
                   (x[0], 0, z[1])]
        self._add(label, self.project(corners), 'ground', 0., look)

    def wall(self, label: Optional[str], x: float, points: ArrayLike,
             look: Look) -> None:
        """A polygon of (z, y) points in a plane along the street."""
        corners = [(x, y, z) for z, y in np.asarray(points, float)]
        self._add(label, self.project(corners), 'wall', abs(x), look)

    def upright(self, label: Optional[str], z: float, points: ArrayLike,
                look: Look) -> None:
        """A polygon of (x, y) points in a plane across the street."""
        corners = [(x, y, z) for x, y in np.asarray(points, float)]
        self._add(label, self.project(corners), 'upright', z, look)

    def screen(self, label: str, points: ArrayLike, plane: str,
               look: Look) -> None:
        """A polygon of image points: the sky or the own bonnet."""
        distance = SKY_DISTANCE if plane == 'sky' else 1.
        self._add(label, np.asarray(points, float), plane, distance, look)

    def _add(self, label: Optional[str], outline: np.ndarray, plane: str,
             distance: float, look: Look) -> None:
        low, high = outline.min(0), outline.max(0)
        if (high > 0).all() and low[0] < self.width and low[1] < self.height:
            self.parts.append(Part(label, outline, plane, distance, look))


def box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """Axis-parallel rectangle."""
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def ellipse(x: float,
            y: float,
            rx: float,
            ry: float,
            corners: int = 12,
            rough: Optional[Rng] = None) -> np.ndarray:
    """Ellipse around (x, y), with a ragged edge if ``rough`` is given."""
    angle = np.arange(corners) * (2 * math.pi / corners)
    unit = np.stack([np.cos(angle), np.sin(angle)], 1)
    if rough is not None:
        unit *= 1 + .16 * rough.uniform(-1, 1, (corners, 1))
    return unit * (rx, ry) + (x, y)


def limb(start: Range, end: Range, width: float) -> np.ndarray:
    """Bar of the given width between two points."""
    (x0, y0), (x1, y1) = start, end
    share = width / 2 / max(math.hypot(x1 - x0, y1 - y0), 1e-6)
    dx, dy = share * (y0 - y1), share * (x1 - x0)
    return np.array([[x0 - dx, y0 - dy], [x1 - dx, y1 - dy],
                     [x1 + dx, y1 + dy], [x0 + dx, y0 + dy]])


def vary(rng: Rng, color: Color, spread: float = .05) -> Color:
    """A colour near this one: brightness varies more than hue."""
    shift = rng.normal(0, spread, 4)
    red, green, blue = np.clip(color + shift[3] + shift[:3] / 2, .03, .97)
    return float(red), float(green), float(blue)


def any_of(rng: Rng, colors: Tuple[Color, ...]) -> Color:
    return vary(rng, colors[rng.integers(len(colors))])


def dim(color: Color, share: float) -> Color:
    red, green, blue = color
    return share * red, share * green, share * blue
