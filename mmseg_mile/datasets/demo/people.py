# SPDX-License-Identifier: Apache-2.0
"""People on foot and animals."""
from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .furniture import Color, jitter
from .shapes import box, ellipse, limb
from .sketch import Paint, Sketch

_SKINS = ((.80, .62, .50), (.62, .44, .33), (.42, .29, .22))
BODY_HEAT, SKIN_HEAT = 12., 17.


def clothes(rng: np.random.Generator) -> Color:
    """Colour of a garment: mostly dark, at times bright."""
    if rng.random() < .55:
        return jitter(rng, (.20, .21, .25), .06)
    red, green, blue = rng.uniform(.15, .85, 3).tolist()
    return red, green, blue


def skin(rng: np.random.Generator) -> Paint:
    """Paint of bare skin."""
    return Paint('skin', _SKINS[rng.integers(len(_SKINS))], SKIN_HEAT)


def draw_person(sketch: Sketch, rng: np.random.Generator, x: float,
                z: float) -> None:
    """Pedestrian, standing or walking."""
    size = rng.uniform(.86, 1.08) if rng.random() < .85 else .68
    stride = rng.uniform(-.28, .28)
    trousers = Paint('cloth', jitter(rng, (.20, .20, .24), .06), BODY_HEAT - 2)
    coat = Paint('cloth', clothes(rng), BODY_HEAT)

    def put(points: ArrayLike, paint: Paint) -> None:
        sketch.upright('person', z, np.asarray(points) * size + (x, 0), paint)

    put(limb((-.09, .88), (-.09 - stride, 0), .21), trousers)
    put(limb((.09, .88), (.09 + stride, 0), .21), trousers)
    torso = [[-.21, .82], [.21, .82], [.29, 1.42], [.16, 1.5], [-.16, 1.5],
             [-.29, 1.42]]
    put(torso, coat)
    put(limb((-.27, 1.4), (-.34 - stride * .4, .85), .14), coat)
    put(limb((.27, 1.4), (.34 - stride * .4, .85), .14), coat)
    put(ellipse(0., 1.64, .135, .16, 10), skin(rng))
    if rng.random() < .5:
        put(box(-.13, 1.68, .13, 1.8), Paint('cloth', (.16, .12, .10), 9.))
    if rng.random() < .25:
        put(box(.2, .55, .48, .95), Paint('cloth', clothes(rng), 2.))


def draw_animal(sketch: Sketch, rng: np.random.Generator, x: float,
                z: float) -> None:
    """Cow on or beside the road."""
    tone = jitter(rng, (.62, .55, .46) if rng.random() < .5 else
                  (.30, .23, .18))
    paint = Paint('cloth', tone, 10.)
    way = rng.choice([-1., 1.])

    def put(points: np.ndarray, look: Paint = paint) -> None:
        sketch.upright('animal', z,
                       np.asarray(points) * (way, 1) + (x, 0), look)

    for leg in (-.75, -.5, .5, .75):
        put(limb((leg, .75), (leg, 0), .17))
    put(ellipse(0., 1., 1., .42))
    put(limb((.8, 1.15), (1.15, 1.4), .34))
    put(ellipse(1.25, 1.4, .32, .2, 10), paint._replace(heat=13.))
