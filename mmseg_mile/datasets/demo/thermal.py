# SPDX-License-Identifier: Apache-2.0
"""A long-wave infrared camera that looks at the same scenes.

It sees heat instead of colour: people, engines and tyres against the air,
the cold sky, and by day whatever the sun has warmed. Raw 16-bit counts as in
HeatNet, which clips them to 21800..25000.
"""
from __future__ import annotations

import cv2
import numpy as np

from .raster import Buffers
from .texture import noise

# Counts per degree, and counts of air at 8 degrees.
_GAIN, _ZERO, _ZERO_DEGREES = 62., 22450., 8.
_BLOOD, _AIR_AT_FULL_HEAT = 31., 8.
# yapf: disable
# Degrees that full sunshine adds.
_SUNSHINE = dict(asphalt=11., marking=8., paving=9., curb=8., dirt=11.,
                 grass=3., facade=5., foliage=0., bark=2., wood=6.,
                 concrete=5., metal=3., rubber=5., sign=3., hood=4., cloth=2.,
                 hill=1.)
# yapf: enable
# Real frames are 1920 wide, and warping leaves these columns without data.
_FRAME_WIDTH, _FIRST, _LAST = 1920, 300, 1710


def valid_columns(width: int) -> tuple[int, int]:
    """First valid infrared column, and the one after the last."""
    return (round(_FIRST * width / _FRAME_WIDTH),
            round(_LAST * width / _FRAME_WIDTH))


def render_thermal(buffers: Buffers, night: bool,
                   rng: np.random.Generator) -> np.ndarray:
    """Take an infrared picture.

    Args:
        buffers (Buffers): The scene.
        night (bool): No sun, colder air, windows lit.
        rng (np.random.Generator): Source of weather and noise.

    Returns:
        np.ndarray: uint16 (H, W) counts; 0 outside the valid columns.
    """
    camera = buffers.sketch.camera
    air = rng.normal(7., 2.) if night else rng.normal(18., 2.5)
    degrees = _scene_degrees(buffers, air, night, rng)
    counts: np.ndarray = _ZERO + _GAIN * (degrees - _ZERO_DEGREES)
    counts = cv2.resize(
        counts, (camera.width, camera.height), interpolation=cv2.INTER_AREA)
    counts = _sensor(counts, rng)
    first, last = valid_columns(camera.width)
    counts[:, :first] = 0
    counts[:, last:] = 0
    return counts


def _scene_degrees(buffers: Buffers, air: float, night: bool,
                   rng: np.random.Generator) -> np.ndarray:
    # What keeps its own temperature stands out less in warmer air.
    contrast = (_BLOOD - air) / (_BLOOD - _AIR_AT_FULL_HEAT)
    living = buffers.of('skin', 'cloth')
    above = buffers.heat.copy()
    above[living] *= contrast
    if not night:
        above += _sunshine(buffers, rng)
    windows, chance = buffers.windows
    lit = windows & (chance < .35)
    above[windows] = -1.5 if night else -3.
    above[lit] = 7. if night else 1.
    # A body's warmth is as uneven as its surface.
    unit = buffers.scale
    rough = .45 + .65 * buffers.of('foliage', 'grass', 'dirt')
    above += rough.astype(np.float32) * noise(rng, buffers.shape, 2 * unit)
    above += .5 * noise(rng, buffers.shape, 18 * unit)
    through = cv2.exp(-buffers.z / 260.)
    degrees = air + above * through
    sky = buffers.on('sky')
    degrees[sky] = air + _sky(buffers, night, rng)[sky]
    return degrees.astype(np.float32)


def _sunshine(buffers: Buffers, rng: np.random.Generator) -> np.ndarray:
    strength = rng.uniform(.15, 1.)
    gain = buffers.by_material(_SUNSHINE)
    side = rng.choice([-1, 1])
    shaded = buffers.on('wall') & (np.sign(buffers.x) == side)
    return strength * gain * np.where(shaded, np.float32(.25), 1)


def _sky(buffers: Buffers, night: bool,
         rng: np.random.Generator) -> np.ndarray:
    """Coldest overhead; clouds are warmer."""
    height, width = buffers.shape
    rise = np.linspace(1, 0, height, dtype=np.float32)[:, None]
    depth = rng.uniform(7., 10.) if night else rng.uniform(12., 20.)
    cloud = noise(rng, (height, width), 36 * buffers.scale)
    return -depth * (.55 + .45 * rise) + .7 * cloud


def _sensor(counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Soft optics, drifting offset, uneven columns, pixel noise."""
    seen: np.ndarray = cv2.GaussianBlur(counts, (0, 0), .7)
    seen += rng.normal(0, 60.)
    seen += rng.normal(0, 5., (1, seen.shape[1]))
    seen += rng.normal(0, 10., seen.shape)
    return np.rint(np.clip(seen, 20800, 27000)).astype(np.uint16)
