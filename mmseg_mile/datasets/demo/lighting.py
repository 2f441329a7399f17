# SPDX-License-Identifier: Apache-2.0
"""Daylight and lamplight on a textured scene."""
from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from .pixels import Color, lit, tinted
from .raster import Buffers
from .sketch import SKY_DISTANCE
from .texture import noise

# Light of old street lamps.
_SODIUM: Color = (1., .78, .48)


class Daylight(NamedTuple):
    """The sky and the light it gives.

    ``sun_side`` is -1 or 1; 0 stands for an overcast sky without shadows.
    """
    zenith: Color
    rim: Color
    ambient: Color
    sun: Color
    sun_side: int
    clouds: float


def light_by_day(color: np.ndarray, buffers: Buffers, light: Daylight,
                 rng: np.random.Generator) -> np.ndarray:
    """Shade a textured scene by the sky and the sun."""
    shade = np.full(buffers.shape, .8, np.float32)
    wall = buffers.on('wall')
    left = buffers.x < 0
    shade[wall] = .55 + .45 * light.sun_side if light.sun_side else .7
    if light.sun_side:
        shade[wall & ~left] = .55 - .45 * light.sun_side
    ground = buffers.on('ground')
    shade[ground] = 1.
    if light.sun_side:
        shade[ground & _cast_shadow(buffers, light.sun_side, rng)] = .08
    image = tinted(color, light.ambient) + lit(color, shade, light.sun)
    _paint_sky(image, buffers, light, rng)
    return image


def light_by_night(color: np.ndarray,
                   buffers: Buffers,
                   moon: float,
                   rng: np.random.Generator,
                   tint: Color = _SODIUM) -> np.ndarray:
    """Shade a textured scene by lamps, headlights and lit windows."""
    warm, cold = np.array(tint), np.array([.55, .7, 1.])
    image = tinted(color, tuple(moon * cold))
    image += lit(color, _lamp_light(buffers), tint)
    image += lit(color, _head_light(buffers), (.95, .95, .88))
    # Light of the town on the clouds, strongest above the roofs.
    sky = np.nonzero(buffers.on('sky'))
    haze = rng.uniform(.05, .17) * (.4 + sky[0] / buffers.shape[0])
    image[sky] = haze[:, None] * (.5 * warm + .5 * cold)
    return _emit(image, color, buffers, rng, warm)


def bloom(image: np.ndarray, buffers: Buffers, spread: float,
          strength: float) -> np.ndarray:
    """Halo around whatever outshines the sensor."""
    excess = np.clip(image - .75, 0., 3.)
    small = cv2.resize(
        excess, None, fx=.25, fy=.25, interpolation=cv2.INTER_AREA)
    halo: np.ndarray = cv2.GaussianBlur(small, (0, 0),
                                        spread * buffers.scale / 4)
    halo += .5 * cv2.GaussianBlur(small, (0, 0), spread * buffers.scale)
    size = buffers.shape[1], buffers.shape[0]
    return image + strength * cv2.resize(halo, size)


def _cast_shadow(buffers: Buffers, sun_side: int,
                 rng: np.random.Generator) -> np.ndarray:
    """Buildings on the sun's side throw theirs over the street."""
    left, right = buffers.sketch.road
    reach = rng.uniform(left - 2, right + 1) * sun_side
    blocks = 1.6 * np.sign(
        np.sin(buffers.z * rng.uniform(.25, .5) + rng.uniform(0, 6)))
    return sun_side * buffers.x > reach + blocks


def _paint_sky(image: np.ndarray, buffers: Buffers, light: Daylight,
               rng: np.random.Generator) -> None:
    unit, width = buffers.scale, buffers.shape[1]
    mask = buffers.on('sky')
    # Nothing of the sky lies below its last row.
    height = int(np.flatnonzero(mask.any(axis=1)).max(initial=0)) + 1
    rise = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    zenith, rim = np.array((light.zenith, light.rim), np.float32)
    sky = (1 - rise) * zenith + rise * rim
    cloud = noise(rng, (height, width), 40 * unit)
    cloud += .6 * noise(rng, (height, width), 16 * unit)
    cloud = .6 * np.clip(.5 * cloud + light.clouds - .5, 0., 1.)[..., None]
    seen = np.nonzero(mask[:height])
    sky = np.broadcast_to(sky, (height, width, 3))[seen]
    image[seen] = sky + cloud[seen] * (1.08 * rim - sky)


def _lamp_light(buffers: Buffers) -> np.ndarray:
    """Street lamps shine downwards; light falls with distance squared."""
    total = np.full(buffers.shape, .06, np.float32)
    for x, y, z in buffers.sketch.lamps:
        down = np.clip((y - buffers.y) / y, 0., 1.)
        square = np.square(buffers.x - x)
        square += np.square(buffers.y - y)
        square += np.square(buffers.z - z)
        total += 26. * down / (square + 14.)
    # Far streets are lit by lamps that are out of view.
    far = np.clip((buffers.z - 18.) / 40., 0., 1.)
    total += .24 * far * (buffers.y < 6.) * (buffers.z < 140.)
    total[buffers.z >= SKY_DISTANCE] = 0.
    return total


def _head_light(buffers: Buffers) -> np.ndarray:
    """Dipped beam of the own car."""
    aim = cv2.exp(-np.square(buffers.x / (1.6 + .20 * buffers.z)))
    cut = 1 / (1 + cv2.exp(np.clip(2.5 * (buffers.y - 1.1), -20, 20)))
    reach = 1 / (1 + np.square(buffers.z / 20.))
    beam = .85 * aim * cut * reach
    beam[buffers.on('hood')] = .02
    return beam


def _emit(image: np.ndarray, color: np.ndarray, buffers: Buffers,
          rng: np.random.Generator, warm: np.ndarray) -> np.ndarray:
    windows, chance = buffers.windows
    bright = windows & (chance < rng.uniform(.12, .4))
    image[bright] = (.35 + 1.6 * chance[bright][:, None]) * warm
    glowing = buffers.glow > 0
    image[glowing] += (
        buffers.glow[glowing][:, None] * (.25 + .75 * color[glowing]))
    return image
