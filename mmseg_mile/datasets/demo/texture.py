# SPDX-License-Identifier: Apache-2.0
"""Surfaces with windows, slabs, slats and grain, in world coordinates."""
from __future__ import annotations

import cv2
import numpy as np

from .pixels import fraction, shaded
from .raster import Buffers

# yapf: disable
# Strength of fine and of coarse grain by material.
_GRAIN = dict(asphalt=(.10, .035), marking=(.10, .10), paving=(.08, .08),
              curb=(.08, .08), dirt=(.16, .20), grass=(.26, .24),
              facade=(.07, .08), glass=(.06, .20), foliage=(.42, .38),
              bark=(.25, .2), wood=(.12, .10), concrete=(.12, .16),
              metal=(.05, .10), rubber=(.1, .1), skin=(.05, .05),
              cloth=(.12, .14), sign=(.05, .06), hood=(.03, .10),
              hill=(.14, .14))
# yapf: enable
_UPRIGHT = ('metal', 'cloth', 'foliage', 'concrete', 'facade')


def noise(rng: np.random.Generator, shape: tuple[int, int],
          cell: int) -> np.ndarray:
    """Smooth noise of about unit variance, with features of ``cell`` pixels.
    """
    height, width = shape
    coarse = rng.standard_normal((height // cell + 2, width // cell + 2),
                                 np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def textured(buffers: Buffers, rng: np.random.Generator) -> np.ndarray:
    """Colour of every surface under even light, float32 (H, W, 3)."""
    scale, shape = buffers.scale, buffers.shape
    fine = buffers.by_material({k: v[0] for k, v in _GRAIN.items()})
    coarse = buffers.by_material({k: v[1] for k, v in _GRAIN.items()})
    # Near surfaces show their grain coarsely, distant ones finely.
    near = np.minimum(14. / buffers.z, 1.)
    rough = noise(rng, shape, scale)
    rough += near * (noise(rng, shape, 3 * scale) - rough)
    shade = 1 + fine * rough + coarse * noise(rng, shape, 12 * scale)
    np.clip(shade, .25, 1.9, out=shade)
    shade *= _joints(buffers)
    # Lanes are polished where the tyres run.
    road = buffers.by_material(dict(asphalt=.10))
    shade *= 1 - road * tyre_tracks(buffers.x)
    # Upright things are darker towards the ground.
    low = np.clip(.26 - .12 * buffers.y, 0., .26)
    shade *= 1 - low * buffers.by_material(dict.fromkeys(_UPRIGHT, 1.))
    windows, _ = buffers.windows
    surface = buffers.color.copy()
    surface[windows] = rng.uniform(.16, .42) * np.array([.9, 1., 1.15])
    color = shaded(surface, shade)
    return np.minimum(color, 1., out=color)


def tyre_tracks(x: np.ndarray) -> np.ndarray:
    """1 where tyres run, 0 between, from the sideways position in metres."""
    across = np.abs(fraction(x / 3.3 + .5) - .5) * 3.3
    return np.clip(1 - np.abs(across - .8) / .42, 0., 1.)


def _joints(buffers: Buffers) -> np.ndarray:
    """Darker joints between slabs, stones and slats."""
    dark = np.ones(buffers.shape, np.float32)
    near = buffers.z < 30
    along, level = buffers.along, buffers.y / .45
    slab = (fraction(buffers.x / .9) < .08) | (fraction(buffers.z / .9) < .08)
    dark[slab & near & buffers.of('paving')] = .78
    course = np.floor(level)
    stone = (level - course < .13) | (fraction(along / .9 + .5 * course) < .06)
    dark[stone & near & buffers.of('concrete')] = .80
    wood = near & buffers.of('wood')
    dark[wood & (fraction(buffers.y / .8) < .12)] = .75
    dark[wood & (fraction(along / .32) < .28)] = .45
    return dark
