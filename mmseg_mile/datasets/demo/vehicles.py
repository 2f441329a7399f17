# SPDX-License-Identifier: Apache-2.0
"""Cars, trucks, buses, autorickshaws and carts, from behind or ahead."""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .furniture import Color, dimmed, jitter
from .shapes import box, ellipse, placed
from .sketch import Paint, Sketch

_CAR_COLORS = ((.80, .80, .80), (.55, .56, .58), (.14, .14, .16),
               (.62, .12, .10), (.13, .20, .42), (.86, .86, .84),
               (.33, .35, .37), (.45, .40, .30))
_ENGINE_HEAT, _TYRE_HEAT = 20., 13.

Size = tuple[float, float, float]


class Body(NamedTuple):
    """Size in metres and outline of one kind of vehicle.

    ``face`` is the outline of its end in units of width and height, ``top``
    the height of the roof from front to end as (share of length, height).
    """
    label: str
    size: Size
    face: tuple[tuple[float, float], ...]
    top: tuple[tuple[float, float], ...]
    window: tuple[float, float, float, float]


# yapf: disable
_CAR_FACE = ((-.5, .14), (-.5, .5), (-.46, .6), (-.37, .95), (-.3, 1.),
             (.3, 1.), (.37, .95), (.46, .6), (.5, .5), (.5, .14))
_BOX_FACE = ((-.5, .12), (-.5, .97), (-.47, 1.), (.47, 1.), (.5, .97),
             (.5, .12))
_RICK_FACE = ((-.5, .18), (-.5, .55), (-.42, .92), (-.3, 1.), (.3, 1.),
              (.42, .92), (.5, .55), (.5, .18))
BODIES = dict(
    car=Body('car', (1.8, 1.5, 4.3), _CAR_FACE,
             ((0, .6), (.1, 1.), (.55, 1.), (.75, .62), (1., .55)),
             (-.36, .60, .36, .90)),
    truck=Body('truck', (2.5, 3.2, 7.5), _BOX_FACE,
               ((0, 1.), (.78, 1.), (.8, .8), (1., .78)),
               (-.40, .50, .40, .70)),
    bus=Body('bus', (2.6, 3.1, 10.5), _BOX_FACE, ((0, 1.), (1., 1.)),
             (-.42, .46, .42, .82)),
    autorickshaw=Body('autorickshaw', (1.4, 1.75, 2.6), _RICK_FACE,
                      ((0, .95), (.2, 1.), (.7, 1.), (1., .6)),
                      (-.32, .60, .32, .86)),
)
# yapf: enable


def draw_vehicle(sketch: Sketch,
                 rng: np.random.Generator,
                 kind: str,
                 x: float,
                 z: float,
                 oncoming: bool,
                 running: bool = True) -> None:
    """Draw one vehicle whose nearer end stands at (x, z).

    Args:
        sketch (Sketch): Scene to draw into.
        rng (np.random.Generator): Source of size and colour.
        kind (str): Key of ``BODIES``.
        x (float): Sideways position of its middle.
        z (float): Distance of the end towards the camera.
        oncoming (bool): Show the front instead of the rear.
        running (bool): Lights on, engine and tyres warm.
    """
    body = BODIES[kind]
    width, height, length = np.array(body.size) * rng.uniform(.93, 1.1, 3)
    color = _body_color(rng, kind)
    warm = 1. if running else .15
    sketch.strip(None, (x - width * .55, x + width * .55),
                 (z - .1, z + length),
                 Paint('asphalt', (.10, .10, .11), 9. * warm))
    _draw_sides(sketch, body, (width, height, length), x, z, oncoming, color,
                warm)
    for side in (-.38, .38):
        foot = placed(box(-.11, 0, .11, .22), x + side * width, (width, 1.6))
        sketch.upright(body.label, z, foot,
                       Paint('rubber', (.06, .06, .06), _TYRE_HEAT * warm))
    sketch.upright(body.label, z, placed(body.face, x, (width, height)),
                   Paint('metal', color, 5. * warm))
    _draw_face(sketch, rng, body, (width, height), x, z, oncoming, running)
    if kind == 'autorickshaw':
        roof = [[-.42, .92], [-.3, 1.], [.3, 1.], [.42, .92], [.47, .7],
                [-.47, .7]]
        sketch.upright(None, z, placed(roof, x, (width, height)),
                       Paint('cloth', (.82, .66, .10), 3.))


def draw_cart(sketch: Sketch, rng: np.random.Generator, x: float,
              z: float) -> None:
    """Hand cart: a vehicle of no class of its own."""
    for side in (-.6, .6):
        sketch.upright('vehicle fallback', z, ellipse(x + side, .35, .34, .34),
                       Paint('rubber', (.10, .09, .08), 1.))
    sketch.upright('vehicle fallback', z, box(x - 1., .5, x + 1., .9),
                   Paint('wood', jitter(rng, (.42, .30, .18)), 0.))
    sketch.upright('vehicle fallback', z, box(x - .8, .9, x + .8, 1.4),
                   Paint('cloth', tuple(rng.uniform(.2, .8, 3)), 0.))


def _body_color(rng: np.random.Generator, kind: str) -> Color:
    if kind == 'autorickshaw':
        return jitter(rng, ((.10, .34, .16), (.82, .68, .12))[rng.integers(2)],
                      .04)
    if kind == 'bus':
        return jitter(rng, ((.80, .66, .18), (.70, .14, .12), (.76, .76, .74),
                            (.16, .34, .60))[rng.integers(4)])
    if kind == 'truck':
        return jitter(rng, ((.72, .72, .70), (.64, .32, .12), (.18, .30, .50),
                            (.40, .42, .30))[rng.integers(4)])
    return jitter(rng, _CAR_COLORS[rng.integers(len(_CAR_COLORS))], .04)


def _draw_sides(sketch: Sketch, body: Body, size: Size, x: float, z: float,
                oncoming: bool, color: Color, warm: float) -> None:
    width, height, length = size
    profile = [(share if not oncoming else 1 - share, top)
               for share, top in body.top]
    points = [(x + side * width, (.16 if low else top) * height,
               z + share * length) for share, top in profile
              for side in (-.47, .47) for low in (True, False)]
    sketch.hull(body.label, z, np.array(points),
                Paint('metal', dimmed(color, .78), 4. * warm))
    if abs(x) < width * .6:
        return
    inner = x - np.sign(x) * width * .5
    if body.label in ('car', 'bus'):
        low, high = body.window[1] * height, body.window[3] * height
        start, end = (.12, .68) if body.label == 'car' else (.05, .95)
        if oncoming:
            start, end = 1 - end, 1 - start
        sketch.wall(None, inner,
                    box(z + start * length, low, z + end * length, high),
                    Paint('glass', (.13, .15, .17), 1., .08))
    for share in (.2, .8):
        wheel = ellipse(z + share * length, .33, .36, .34, 10)
        sketch.wall(body.label, inner, wheel,
                    Paint('rubber', (.05, .05, .05), _TYRE_HEAT * warm))


def _draw_face(sketch: Sketch, rng: np.random.Generator, body: Body,
               size: tuple[float, float], x: float, z: float, oncoming: bool,
               running: bool) -> None:
    width, height = size

    def put(x0: float,
            y0: float,
            x1: float,
            y1: float,
            paint: Paint,
            label: str | None = None) -> None:
        sketch.upright(label, z,
                       placed(box(x0, y0, x1, y1), x, (width, height)), paint)

    if body.label != 'truck' or oncoming:
        put(*body.window, Paint('glass', (.14, .16, .19), 1., .04))
    low, high = (.36, .47) if body.label == 'car' else (.22, .29)
    glow = 0. if not running else (2.2 if oncoming else .9)
    tone = (.92, .92, .84) if oncoming else (.78, .08, .07)
    for left in (-.47, .31):
        put(left, low, left + .16, high, Paint('lamp', tone, 7., glow))
    if oncoming and running:
        put(-.24, low - .12, .24, high,
            Paint('metal', (.09, .09, .10), _ENGINE_HEAT))
    elif running:
        put(-.3, .14, -.08, .22, Paint('metal', (.1, .1, .1), _ENGINE_HEAT))
    if z < 25:
        plate = (.85, .84, .78) if rng.random() < .7 else (.85, .72, .2)
        put(-.15, low - .16, .15, low - .05, Paint('sign', plate, 2., .05),
            'license plate')
