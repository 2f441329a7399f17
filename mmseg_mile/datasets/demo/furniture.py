# SPDX-License-Identifier: Apache-2.0
"""Trees, poles, lamps, signs and other things along the road."""
from __future__ import annotations

import numpy as np

from .shapes import blob, box, ellipse, limb
from .sketch import Paint, Sketch

Color = tuple[float, float, float]


def jitter(rng: np.random.Generator,
           color: Color,
           spread: float = .05) -> Color:
    """Vary a colour: brightness more than hue."""
    *hue, brightness = rng.normal(0, spread, 4).tolist()
    red, green, blue = (min(max(c + brightness + h / 2, .03), .97)
                        for c, h in zip(color, hue))
    return red, green, blue


def dimmed(color: Color, share: float) -> Color:
    """A colour at a share of its brightness."""
    red, green, blue = color
    return share * red, share * green, share * blue


def draw_tree(sketch: Sketch, rng: np.random.Generator, x: float,
              z: float) -> None:
    """Broad-leaved or conical tree."""
    height = rng.uniform(5.6, 9)
    trunk = rng.uniform(1.6, 2.6)
    sketch.upright('vegetation', z, limb((x, 0), (x, trunk + 1), .38),
                   Paint('bark', (.26, .21, .17), 0.))
    tone = jitter(rng, (.26, .36, .15), .05)
    if rng.random() < .2:
        cone = [[x - 1.6, trunk * .5], [x + 1.6, trunk * .5], [x, height]]
        sketch.upright('vegetation', z, cone, Paint('foliage', tone, -1.))
        return
    for _ in range(4 if z < 45 else 2):
        radius = rng.uniform(1.1, 1.9)
        center = x + rng.uniform(-1.1, 1.1)
        level = trunk + radius * .8 + rng.random() * (height - trunk - 3.)
        red, green, blue = (c * rng.uniform(.8, 1.15) for c in tone)
        sketch.upright('vegetation', z,
                       blob(rng, center, level, radius * 1.15, radius),
                       Paint('foliage', (red, green, blue), -1.))


def draw_bush(sketch: Sketch, rng: np.random.Generator, x: float,
              z: float) -> None:
    """Bush or hedge."""
    width, height = rng.uniform(.9, 2.), rng.uniform(.8, 1.6)
    sketch.upright('vegetation', z,
                   blob(rng, x, height * .45, width, height * .6),
                   Paint('foliage', jitter(rng, (.24, .34, .14)), -1.))


def draw_pole(sketch: Sketch, rng: np.random.Generator, x: float,
              z: float) -> None:
    """Bare pole."""
    tone = jitter(rng, (.45, .45, .46), .08)
    sketch.upright('pole', z, limb((x, 0), (x, rng.uniform(4.5, 8)), .26),
                   Paint('metal', tone, -1.))


def draw_lamp(sketch: Sketch, rng: np.random.Generator, x: float,
              z: float) -> None:
    """Street lamp whose arm reaches over the road."""
    height = rng.uniform(5., 7.)
    reach = -np.sign(x) * rng.uniform(1., 1.8)
    paint = Paint('metal', jitter(rng, (.42, .43, .44)), -1.)
    sketch.upright('pole', z, limb((x, 0), (x, height), .26), paint)
    sketch.upright('pole', z, limb((x, height), (x + reach, height + .2), .2),
                   paint)
    sketch.upright('pole', z, ellipse(x + reach, height + .1, .45, .2, 8),
                   Paint('lamp', (.75, .74, .68), 8., 1.6))
    sketch.lamps.append((x + reach, height, z))


def draw_traffic_light(sketch: Sketch, rng: np.random.Generator, x: float,
                       z: float) -> None:
    """Signal head on a pole."""
    height = rng.uniform(2.6, 3.6)
    sketch.upright('pole', z, limb((x, 0), (x, height + .2), .22),
                   Paint('metal', (.35, .35, .36), -1.))
    sketch.upright('traffic light', z,
                   box(x - .36, height, x + .36, height + 1.6),
                   Paint('metal', (.09, .10, .09), 4.))
    lit = int(rng.integers(3))
    colors = ((.20, .85, .45), (.95, .75, .15), (.95, .16, .12))
    for i, color in enumerate(colors):
        tone = color if i == lit else dimmed(color, .25)
        heat, glow = (8., 1.3) if i == lit else (4., 0.)
        sketch.upright(None, z, ellipse(x, height + .3 + .5 * i, .2, .2, 10),
                       Paint('lamp', tone, heat, glow))


def draw_sign(sketch: Sketch, rng: np.random.Generator, x: float,
              z: float) -> None:
    """Traffic sign on a pole, round, triangular or a board."""
    level, size = rng.uniform(2.3, 3.1), rng.uniform(.48, .68)
    sketch.upright('pole', z, limb((x, 0), (x, level), .16),
                   Paint('metal', (.52, .52, .53), -1.))
    kind = rng.integers(4)
    if kind == 0:
        rim, face = (.80, .12, .12), (.90, .89, .86)
        outer = ellipse(x, level, size, size)
        inner = ellipse(x, level, size * .68, size * .68)
    elif kind == 1:
        rim, face = (.80, .14, .12), (.90, .86, .74)
        outer = ellipse(x, level, size * 1.2, size * 1.2, 3)[:, ::-1]
        outer = outer - outer.mean(axis=0) + (x, level)
        inner = (outer - (x, level)) * .55 + (x, level)
    elif kind == 2:
        rim, face = (.12, .25, .62), (.16, .32, .72)
        outer = box(x - size, level - size, x + size, level + size)
        inner = (outer - (x, level)) * .8 + (x, level)
    else:
        rim, face = (.85, .83, .78), (.86, .68, .12)
        outer = ellipse(x, level, size * 1.1, size * 1.1, 4)
        inner = (outer - (x, level)) * .75 + (x, level)
    sketch.upright('traffic sign', z, outer, Paint('sign', rim, -1., .06))
    sketch.upright(None, z, inner, Paint('sign', face, -1., .06))


def draw_billboard(sketch: Sketch, rng: np.random.Generator, x: float,
                   z: float) -> None:
    """Advertising board on two legs."""
    width, low = rng.uniform(1.6, 2.8), rng.uniform(2.4, 4.)
    for leg in (-.6, .6):
        sketch.upright('pole', z,
                       limb((x + leg * width, 0), (x + leg * width, low), .2),
                       Paint('metal', (.35, .33, .32), 0.))
    tone = tuple(rng.uniform(.25, .9, 3))
    sketch.upright('billboard', z,
                   box(x - width, low, x + width, low + rng.uniform(1.4, 2.4)),
                   Paint('sign', tone, 3., .1))
    for row in range(2):
        bottom, right = low + .3 + .6 * row, width * rng.uniform(0, .8)
        sketch.upright(None, z,
                       box(x - width * .8, bottom, x + right, bottom + .3),
                       Paint('sign', tuple(rng.uniform(.1, .95, 3)), 3., .1))


def draw_barrier(sketch: Sketch, rng: np.random.Generator, x: float,
                 z: float) -> None:
    """Striped police barrier."""
    width = rng.uniform(.8, 1.3)
    board = box(x - width, .1, x + width, 1.1)
    sketch.upright('obs-str-bar-fallback', z, board,
                   Paint('sign', (.85, .75, .18), 1.))
    for i in range(3):
        left = x - width + (2 * i + .4) * width / 3
        stripe = [[left, .45], [left + .25, .45], [left + .5, .95],
                  [left + .25, .95]]
        sketch.upright(None, z, stripe, Paint('sign', (.1, .1, .1), 1.))


def draw_guard_rail(sketch: Sketch, rng: np.random.Generator, x: float,
                    z: float) -> None:
    """Length of guard rail along the road."""
    length = rng.uniform(8, 18)
    sketch.wall('guard rail', x, box(z, .3, z + length, .95),
                Paint('metal', (.62, .63, .64), 1.))


def draw_bridge(sketch: Sketch, rng: np.random.Generator, x: float,
                z: float) -> None:
    """Overpass across the whole road."""
    low, tone = rng.uniform(5., 6.), jitter(rng, (.50, .48, .45))
    left, right = sketch.road[0] - 3, sketch.road[1] + 3
    for foot in (left + .6, right - .6):
        sketch.upright('bridge', z, box(foot - .6, 0, foot + .6, low),
                       Paint('concrete', tone, 1.))
    sketch.upright('bridge', z, box(left, low, right, low + 1.6),
                   Paint('concrete', tone, 1.))
