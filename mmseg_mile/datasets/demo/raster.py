# SPDX-License-Identifier: Apache-2.0
"""From polygons to what a renderer needs to know of each pixel."""
from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Mapping, Sequence

import cv2
import numpy as np

from .sketch import MATERIALS, SKY_DISTANCE, SURFACES, Part, Sketch
from .windows import window_grid

# Images are painted at this multiple of their size and then averaged down.
OVERSAMPLING = 2


@dataclass
class Buffers:
    """Per-pixel facts of a scene, all (H, W) unless noted.

    ``x``, ``y``, ``z`` are world positions in metres, ``along`` runs along
    the surface: z on a wall, x elsewhere. ``color`` is (H, W, 3).
    """
    sketch: Sketch
    scale: int
    part: np.ndarray
    material: np.ndarray
    surface: np.ndarray
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    along: np.ndarray
    color: np.ndarray
    heat: np.ndarray
    glow: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the buffers."""
        return self.part.shape

    @functools.cached_property
    def windows(self) -> tuple[np.ndarray, np.ndarray]:
        """Mask of window pixels, and one number per window."""
        return window_grid(
            self.of('facade'), self.part, self.along, self.y, self.z)

    def of(self, *materials: str) -> np.ndarray:
        """Mask of the given materials."""
        return self.by_material(dict.fromkeys(materials, 1), np.uint8) > 0

    def by_material(self,
                    values: Mapping[str, float],
                    dtype: type = np.float32) -> np.ndarray:
        """Look up a value for each pixel's material; 0 if it is missing."""
        table: np.ndarray = np.zeros(256, dtype)
        for name, value in values.items():
            table[MATERIALS.index(name)] = value
        return cv2.LUT(self.material, table)

    def on(self, surface: str) -> np.ndarray:
        """Mask of the given surface."""
        return self.surface == SURFACES.index(surface)


def paint_buffers(sketch: Sketch, scale: int = OVERSAMPLING) -> Buffers:
    """Rasterise a sketch for rendering."""
    camera, parts = sketch.camera, sketch.parts
    part = _part_map(parts, camera.height, camera.width, scale)

    def gather(values: Sequence, dtype: type) -> np.ndarray:
        # 'clip' spares a copy of the result; no index is out of range.
        return np.array(values, dtype).take(part, axis=0, mode='clip')

    surface = gather([SURFACES.index(p.surface) for p in parts], np.uint8)
    distance = gather([p.distance for p in parts], np.float32)
    rows, columns = _pixel_centres(part.shape, scale)
    below = np.maximum(rows - camera.horizon, .2)
    aside = np.maximum(np.abs(columns - camera.center_x), .2)
    ground = surface == SURFACES.index('ground')
    wall = surface == SURFACES.index('wall')
    z = np.where(ground, camera.focal * camera.mount / below, distance)
    z = np.where(wall, camera.focal * distance / aside, z)
    z = np.clip(z, .5, SKY_DISTANCE).astype(np.float32)
    x = (columns - camera.center_x) * z / camera.focal
    y = camera.mount + (camera.horizon - rows) * z / camera.focal
    return Buffers(
        sketch,
        scale,
        part,
        material=gather([MATERIALS.index(p.paint.material) for p in parts],
                        np.uint8),
        surface=surface,
        x=x,
        y=y,
        z=z,
        along=np.where(wall, z, x),
        color=gather([p.paint.color for p in parts], np.float32),
        heat=gather([p.paint.heat for p in parts], np.float32),
        glow=gather([p.paint.glow for p in parts], np.float32))


def _part_map(parts: Sequence[Part], height: int, width: int,
              scale: int) -> np.ndarray:
    part_map = np.zeros((height * scale, width * scale), np.int32)
    # A pixel's centre is its integer coordinate, at either resolution.
    corners = np.concatenate([part.outline for part in parts])
    corners = np.rint((corners + .5) * scale - .5).astype(np.int32)
    ends = np.cumsum([len(part.outline) for part in parts])
    for index, outline in enumerate(np.split(corners, ends[:-1])):
        cv2.fillPoly(part_map, [outline], index)
    return part_map.astype(np.intp)


def _pixel_centres(shape: tuple[int, int],
                   scale: int) -> tuple[np.ndarray, np.ndarray]:
    rows = (np.arange(shape[0], dtype=np.float32) + .5) / scale - .5
    columns = (np.arange(shape[1], dtype=np.float32) + .5) / scale - .5
    return rows[:, None], columns[None, :]
