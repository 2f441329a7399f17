# SPDX-License-Identifier: Apache-2.0
"""Things in a fabricated street: furniture, plants, vehicles, people."""
from __future__ import annotations

import math
from typing import Callable, Dict, List, Optional, Tuple

import numpy as np
from numpy.typing import ArrayLike

from .canvas import (Color, Look, Rng, Scene, any_of, box, dim, ellipse, limb,
                     vary)

# yapf: disable
# Width, height, length; outline of its end in units of width and height;
# profile of the roof as (share of length, height); window of its end.
_BOX_END = ((-.5, .12), (-.5, .97), (-.47, 1.), (.47, 1.), (.5, .97),
            (.5, .12))
BODIES = dict(
    car=((1.8, 1.5, 4.3),
         ((-.5, .14), (-.5, .5), (-.37, .95), (-.3, 1.), (.3, 1.),
          (.37, .95), (.5, .5), (.5, .14)),
         ((0, .6), (.1, 1.), (.55, 1.), (.75, .62), (1., .55)),
         (-.36, .60, .36, .90)),
    truck=((2.5, 3.2, 7.5), _BOX_END, ((0, 1.), (.8, 1.), (1., .78)),
           (-.40, .50, .40, .70)),
    bus=((2.6, 3.1, 10.5), _BOX_END, ((0, 1.), (1., 1.)),
         (-.42, .46, .42, .82)),
    autorickshaw=((1.4, 1.75, 2.6),
                  ((-.5, .18), (-.5, .55), (-.3, 1.), (.3, 1.), (.5, .55),
                   (.5, .18)),
                  ((0, .95), (.2, 1.), (.7, 1.), (1., .6)),
                  (-.32, .60, .32, .86)))
_PAINTS = dict(
    car=((.80, .80, .80), (.55, .56, .58), (.14, .14, .16), (.62, .12, .10),
         (.13, .20, .42), (.45, .40, .30)),
    truck=((.72, .72, .70), (.64, .32, .12), (.18, .30, .50)),
    bus=((.80, .66, .18), (.70, .14, .12), (.16, .34, .60)),
    autorickshaw=((.10, .34, .16), (.82, .68, .12)))
_SIGNS = ((12, (.80, .12, .12), (.90, .89, .86)),
          (3, (.80, .14, .12), (.90, .86, .74)),
          (4, (.12, .25, .62), (.16, .32, .72)))
_SKINS = ((.80, .62, .50), (.62, .44, .33), (.42, .29, .22))
_RUBBER: Color = (.06, .06, .06)
_COW = Look('cloth', (.50, .42, .34), 10.)
_CART, _YELLOW = 'vehicle fallback', Look('sign', (.85, .75, .18), 1.)
_SIMPLE: Dict[str, List[Tuple[Optional[str], ArrayLike, Look]]] = dict(
    billboard=[
        ('pole', box(-1.3, 0, -1.1, 3), Look('metal', (.35, .33, .32))),
        ('pole', box(1.1, 0, 1.3, 3), Look('metal', (.35, .33, .32))),
        ('billboard', box(-2.2, 3, 2.2, 5),
         Look('sign', (.6, .3, .3), 3., .1)),
        (None, box(-1.8, 3.5, .8, 4.2), Look('sign', (.8, .8, .7), 3., .1))],
    animal=[
        *(('animal', box(leg - .08, 0, leg + .08, .8), _COW)
          for leg in (-.75, -.5, .5, .75)),
        ('animal', ellipse(0, 1., 1., .42), _COW),
        ('animal', limb((.8, 1.15), (1.15, 1.4), .34), _COW),
        ('animal', ellipse(1.25, 1.4, .32, .2), _COW)],
    cart=[
        (_CART, ellipse(-.6, .35, .34, .34), Look('rubber', _RUBBER, 1.)),
        (_CART, ellipse(.6, .35, .34, .34), Look('rubber', _RUBBER, 1.)),
        (_CART, box(-1., .5, 1., .9), Look('wood', (.42, .30, .18))),
        (_CART, box(-.8, .9, .8, 1.4), Look('cloth', (.5, .4, .4)))],
    barrier=[
        ('obs-str-bar-fallback', box(-1., .1, 1., 1.1), _YELLOW),
        *((None, box(left, .4, left + .25, .95), Look('sign', (.1, .1, .1)))
          for left in (-.8, -.1, .6))])
# yapf: enable


def draw_tree(scene: Scene, rng: Rng, x: float, z: float) -> None:
    height, trunk = rng.uniform(5.6, 9), rng.uniform(1.6, 2.6)
    scene.upright('vegetation', z, limb((x, 0), (x, trunk + 1), .38),
                  Look('wood', (.26, .21, .17)))
    tone = vary(rng, (.26, .36, .15))
    for _ in range(4 if z < 45 else 2):
        radius = rng.uniform(1.1, 1.9)
        level = trunk + radius * .8 + rng.random() * (height - trunk - 3.)
        crown = ellipse(x + rng.uniform(-1.1, 1.1), level, radius * 1.15,
                        radius, 18, rng)
        scene.upright('vegetation', z, crown,
                      Look('foliage', dim(tone, rng.uniform(.8, 1.15)), -1.))


def draw_bush(scene: Scene, rng: Rng, x: float, z: float) -> None:
    width, height = rng.uniform(.9, 2.), rng.uniform(.8, 1.6)
    scene.upright('vegetation', z,
                  ellipse(x, height * .45, width, height * .6, 18, rng),
                  Look('foliage', vary(rng, (.24, .34, .14)), -1.))


def draw_pole(scene: Scene,
              rng: Rng,
              x: float,
              z: float,
              height: Optional[float] = None,
              width: float = .26) -> None:
    height = rng.uniform(4.5, 8) if height is None else height
    scene.upright('pole', z, limb((x, 0), (x, height), width),
                  Look('metal', vary(rng, (.45, .45, .46)), -1.))


def draw_lamp(scene: Scene, rng: Rng, x: float, z: float) -> None:
    """Street lamp whose arm reaches over the road."""
    height = rng.uniform(5., 7.)
    end = x - math.copysign(rng.uniform(1., 1.8), x)
    draw_pole(scene, rng, x, z, height)
    scene.upright('pole', z, limb((x, height), (end, height + .2), .2),
                  Look('metal', (.42, .43, .44), -1.))
    scene.upright('pole', z, ellipse(end, height + .1, .45, .2, 8),
                  Look('lamp', (.75, .74, .68), 8., 1.6))
    scene.lamps.append((end, height, z))


def draw_light(scene: Scene, rng: Rng, x: float, z: float) -> None:
    """Traffic light."""
    height, lit = rng.uniform(2.6, 3.6), int(rng.integers(3))
    draw_pole(scene, rng, x, z, height + .2, .22)
    scene.upright('traffic light', z,
                  box(x - .36, height, x + .36, height + 1.6),
                  Look('metal', (.09, .10, .09), 4.))
    colors = ((.20, .85, .45), (.95, .75, .15), (.95, .16, .12))
    for i, color in enumerate(colors):
        look = Look('lamp', color, 8., 1.3) if i == lit else Look(
            'lamp', dim(color, .25), 4.)
        scene.upright(None, z, ellipse(x, height + .3 + .5 * i, .2, .2), look)


def draw_sign(scene: Scene, rng: Rng, x: float, z: float) -> None:
    """Round, triangular or square traffic sign."""
    level, size = rng.uniform(2.3, 3.1), rng.uniform(.5, .72)
    draw_pole(scene, rng, x, z, level, .16)
    corners, rim, face = _SIGNS[rng.integers(len(_SIGNS))]
    for label, share, color in (('traffic sign', 1., rim), (None, .65, face)):
        # a corner on top
        outline = ellipse(level, x, size * share, size * share, corners)
        scene.upright(label, z, outline[:, ::-1], Look('sign', color, -1.,
                                                       .06))


def draw_simple(scene: Scene, kind: str, rng: Rng, x: float, z: float) -> None:
    """A thing of a few outlines, mirrored by chance."""
    way = rng.choice([-1., 1.])
    for label, outline, look in _SIMPLE[kind]:
        look = look._replace(color=vary(rng, look.color))
        scene.upright(label, z, np.asarray(outline) * (way, 1) + (x, 0), look)


def draw_rail(scene: Scene, rng: Rng, x: float, z: float) -> None:
    """Guard rail along the road."""
    scene.wall('guard rail', x, box(z, .3, z + rng.uniform(8, 18), .95),
               Look('metal', (.62, .63, .64), 1.))


def draw_bridge(scene: Scene, rng: Rng, x: float, z: float) -> None:
    """Overpass across the whole road."""
    z, low = z + 20, rng.uniform(5., 6.)
    look = Look('concrete', vary(rng, (.50, .48, .45)), 1.)
    left, right = scene.road[0] - 3, scene.road[1] + 3
    for span in (box(left, 0, left + 1.2,
                     low), box(right - 1.2, 0, right,
                               low), box(left, low, right, low + 1.6)):
        scene.upright('bridge', z, span, look)


def draw_vehicle(scene: Scene, rng: Rng, kind: str, x: float, z: float,
                 oncoming: bool, running: bool) -> None:
    """A vehicle whose nearer end stands at (x, z); engine warm if running."""
    size, end, roof, window = BODIES[kind]
    width, height, length = np.array(size) * rng.uniform(.93, 1.1, 3)
    color, warm = any_of(rng, _PAINTS[kind]), 1. if running else .15
    scale = (width, height)

    def put(label: Optional[str], points: ArrayLike, look: Look) -> None:
        scene.upright(label, z,
                      np.asarray(points, float) * scale + (x, 0), look)

    scene.ground(None, (x - width * .55, x + width * .55),
                 (z - .1, z + length),
                 Look('asphalt', (.10, .10, .11), 9. * warm))
    if abs(x) > width * .5:
        side = x - math.copysign(width * .47, x)
        profile = [(z + length * (1 - share if oncoming else share),
                    top * height) for share, top in roof]
        profile = profile[::-1] if oncoming else profile
        scene.wall(kind, side, [(z, .16 * height), *profile,
                                (z + length, .16 * height)],
                   Look('metal', dim(color, .78), 4. * warm))
        if kind in ('car', 'bus'):
            scene.wall(
                None, side,
                box(z + .2 * length, window[1] * height,
                    z + .7 * length, window[3] * height),
                Look('glass', (.13, .15, .17), 1., .08))
        for share in (.2, .8):
            scene.wall(kind, side, ellipse(z + share * length, .33, .36, .34),
                       Look('rubber', _RUBBER, 13. * warm))
    for foot in (-.38, .38):
        put(kind, box(foot - .11, 0, foot + .11, .3),
            Look('rubber', _RUBBER, 13. * warm))
    put(kind, end, Look('metal', color, 5. * warm))
    if kind != 'truck' or oncoming:
        put(None, box(*window), Look('glass', (.14, .16, .19), 1., .04))
    low = .36 if kind == 'car' else .22
    glow = 0. if not running else 2.2 if oncoming else .9
    lamp = (.92, .92, .84) if oncoming else (.78, .08, .07)
    for left in (-.47, .31):
        put(None, box(left, low, left + .16, low + .1),
            Look('lamp', lamp, 7., glow))
    if running:
        put(None, box(-.24, low - .12, .24 if oncoming else -.05, low),
            Look('metal', (.09, .09, .10), 20.))
    if z < 25:
        put('license plate', box(-.15, low - .16, .15, low - .05),
            Look('sign', (.85, .84, .78), 2., .05))


def _clothes(rng: Rng) -> Color:
    """Mostly dark, at times bright."""
    if rng.random() < .55:
        return vary(rng, (.20, .21, .25), .06)
    return vary(rng, (.5, .5, .5), .25)


def _skin(rng: Rng) -> Look:
    return Look('skin', _SKINS[rng.integers(len(_SKINS))], 17.)


def draw_person(scene: Scene, rng: Rng, x: float, z: float) -> None:
    """Pedestrian, standing or walking."""
    size = rng.uniform(.86, 1.08) if rng.random() < .85 else .68
    stride = rng.uniform(-.28, .28)
    trousers = Look('cloth', vary(rng, (.20, .20, .24)), 10.)
    coat = Look('cloth', _clothes(rng), 12.)
    for points, look in ((limb(
        (-.09, .88), (-.09 - stride, 0), .21), trousers), (limb(
            (.09, .88), (.09 + stride, 0), .21), trousers), ([
                (-.21, .82), (.21, .82), (.29, 1.42), (-.29, 1.42)
            ], coat), (limb(
                (-.27, 1.4), (-.34 - stride * .4, .85), .14), coat), (limb(
                    (.27, 1.4), (.34 - stride * .4, .85),
                    .14), coat), (ellipse(0., 1.6, .15, .19), _skin(rng))):
        scene.upright('person', z, np.asarray(points) * size + (x, 0), look)


def draw_cycle(scene: Scene, rng: Rng, kind: str, x: float, z: float,
               ridden: bool) -> None:
    """Motorcycle or bicycle, turned anywhere between side and rear view."""
    turn = rng.uniform(.35, 1.) * rng.choice([-1., 1.])
    tone = Look('metal', vary(rng, (.4, .15, .15), .15), 6. * ridden)
    motor = kind == 'motorcycle'

    def put(label: Optional[str], points: ArrayLike, look: Look) -> None:
        scene.upright(label, z, np.asarray(points) * (turn, 1.) + (x, 0), look)

    for wheel in (-.62, .62):
        put(kind, ellipse(wheel, .35, .37, .35),
            Look('rubber', _RUBBER, 13. if ridden and motor else 2.))
        put(None, ellipse(wheel, .35, *((.16, .15) if motor else (.27, .26))),
            Look('metal', (.44, .45, .44)))
    if motor:
        put(kind, [(-.85, .62), (-.5, .35), (.3, .28), (.62, .62), (.5, .98),
                   (.2, .86), (-.82, .84)], tone)
        put(None, ellipse(.02, .42, .26, .16),
            Look('metal', (.20, .20, .21), 24. * ridden))
    else:
        for start, end in (((-.6, .36), (-.1, .36)), ((-.1, .36), (.42, .82)),
                           ((-.25, .9), (-.1, .36)), ((-.2, .8), (.42, .82)),
                           ((.6, .36), (.4, 1.))):
            put(kind, limb(start, end, .12), tone)
    put(kind, limb((.6, .4), (.42, 1.08), .12), Look('metal', (.25, .25, .26)))
    if ridden:
        _draw_rider(put, rng, .86 if motor else .96)


def _draw_rider(put: Callable[[Optional[str], ArrayLike, Look], None],
                rng: Rng, seat: float) -> None:
    coat = Look('cloth', _clothes(rng), 12.)
    trousers = Look('cloth', vary(rng, (.20, .20, .23)), 10.)
    lean = rng.uniform(.1, .3)
    put('rider', limb((-.2, seat), (.22, seat - .1), .25), trousers)
    put('rider', limb((.2, seat - .06), (.05, .22), .2), trousers)
    put('rider', [(-.42, seat - .05), (0, seat - .05), (lean + .16, seat + .6),
                  (lean - .2, seat + .66)], coat)
    put('rider', limb((lean, seat + .5), (.42, seat + .14), .15), coat)
    helmet = Look('metal', vary(rng, (.5, .5, .5), .25), 5.)
    put('rider', ellipse(lean + .04, seat + .82, .18, .2),
        helmet if rng.random() < .65 else _skin(rng))
