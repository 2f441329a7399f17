# SPDX-License-Identifier: Apache-2.0
"""Motorcycles and bicycles, with or without their riders."""
from __future__ import annotations

from typing import Callable, Optional

import numpy as np
from numpy.typing import ArrayLike

from .furniture import jitter
from .people import BODY_HEAT, SKIN_HEAT, clothes, skin
from .shapes import ellipse, limb
from .sketch import Paint, Sketch

# Draws a labelled outline in the turned frame of the vehicle.
Put = Callable[[Optional[str], ArrayLike, Paint], None]


def draw_cycle(sketch: Sketch, rng: np.random.Generator, kind: str, x: float,
               z: float, ridden: bool) -> None:
    """Draw a two-wheeler, turned anywhere between side and rear view.

    Args:
        sketch (Sketch): Scene to draw into.
        rng (np.random.Generator): Source of pose and colour.
        kind (str): 'motorcycle' or 'bicycle'.
        x (float): Sideways position.
        z (float): Distance.
        ridden (bool): Draw a rider, and a warm engine.
    """
    turn = rng.uniform(.35, 1.) * rng.choice([-1., 1.])

    def put(label: str | None, points: ArrayLike, paint: Paint) -> None:
        points = np.asarray(points, float)
        sketch.upright(label, z, points * (turn, 1.) + (x, 0), paint)

    sketch.strip(None, (x - .7 * abs(turn), x + .7 * abs(turn)),
                 (z - .25, z + .5), Paint('asphalt', (.13, .13, .14), 5.))
    (_motorcycle if kind == 'motorcycle' else _bicycle)(put, rng, ridden)
    if ridden:
        _rider(put, rng, kind)
        if kind == 'motorcycle':
            sketch.upright(None, z, ellipse(x + .1 * turn, .8, .11, .11, 8),
                           Paint('lamp', (.80, .12, .08), 7., .9))


def _motorcycle(put: Put, rng: np.random.Generator, ridden: bool) -> None:
    rubber = Paint('rubber', (.06, .06, .06), 13. if ridden else 2.)
    tone = jitter(rng, ((.55, .10, .10), (.12, .14, .30), (.12, .12, .13),
                        (.60, .58, .12))[rng.integers(4)])
    for wheel in (-.68, .68):
        put('motorcycle', ellipse(wheel, .33, .35, .33, 12), rubber)
        put(None, ellipse(wheel, .33, .16, .15, 8),
            Paint('metal', (.40, .40, .41), 4.))
    frame = [[-.85, .62], [-.5, .35], [.3, .28], [.62, .62], [.5, .98],
             [.2, .86], [-.3, .80], [-.82, .84]]
    put('motorcycle', frame, Paint('metal', tone, 6. if ridden else 0.))
    put(None, ellipse(.02, .42, .26, .16, 10),
        Paint('metal', (.20, .20, .21), 24. if ridden else 1.))
    put('motorcycle', limb((.62, .4), (.42, 1.08), .12),
        Paint('metal', (.25, .25, .26), 2.))


def _bicycle(put: Put, rng: np.random.Generator, ridden: bool) -> None:
    tone = Paint('metal', jitter(rng, (.35, .18, .18), .12), 0.)
    for wheel in (-.55, .55):
        put('bicycle', ellipse(wheel, .36, .38, .37, 14),
            Paint('rubber', (.08, .08, .08), 3. if ridden else 0.))
        put(None, ellipse(wheel, .36, .28, .27, 12),
            Paint('metal', (.46, .47, .46), 0.))
    for start, end in (((-.55, .36), (-.1, .36)), ((-.1, .36), (.42, .82)),
                       ((-.25, .85), (-.1, .36)), ((-.2, .8), (.42, .82)),
                       ((.55, .36), (.4, 1.))):
        put('bicycle', limb(start, end, .11), tone)
    put('bicycle', limb((-.38, .92), (-.1, .92), .11),
        Paint('rubber', (.08, .07, .07), 4. if ridden else 0.))


def _rider(put: Put, rng: np.random.Generator, kind: str) -> None:
    coat = Paint('cloth', clothes(rng), BODY_HEAT)
    trousers = Paint('cloth', jitter(rng, (.20, .20, .23)), BODY_HEAT - 2)
    seat = .86 if kind == 'motorcycle' else .96
    foot = (.1, .25) if kind == 'motorcycle' else (-.05, .2)
    put('rider', limb((-.2, seat), (.22, seat - .1), .25), trousers)
    put('rider', limb((.2, seat - .06), foot, .2), trousers)
    lean = rng.uniform(.1, .3)
    torso = [[-.42, seat - .05], [.0, seat - .05], [lean + .16, seat + .6],
             [lean - .2, seat + .66]]
    put('rider', torso, coat)
    put('rider', limb((lean, seat + .5), (.42, seat + .14), .15), coat)
    head = (lean + .04, seat + .82)
    if rng.random() < .65:
        helmet = tuple(rng.uniform(.05, .9, 3))
        put('rider', ellipse(*head, .19, .2, 10), Paint('metal', helmet, 5.))
        put(None, ellipse(head[0] + .1, head[1] - .02, .08, .09, 8),
            Paint('skin', (.35, .25, .2), SKIN_HEAT))
    else:
        put('rider', ellipse(*head, .15, .18, 10), skin(rng))
