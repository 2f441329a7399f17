# SPDX-License-Identifier: Apache-2.0
"""Everything that stands still: sky, ground, road, and the roadside blocks."""
from __future__ import annotations

import numpy as np

from .furniture import dimmed, draw_bush, draw_tree, jitter
from .shapes import box
from .sketch import Paint, Sketch
from .street_styles import StreetStyle

FAR = 95.
_NEAR = 1.5
_LANE = 3.3
_ASPHALT = (.36, .36, .37)


def draw_street(sketch: Sketch, style: StreetStyle,
                rng: np.random.Generator) -> dict[int, tuple[float, float]]:
    """Draw sky, ground and roadside.

    Returns:
        dict[int, tuple[float, float]]: For each side (-1 left, 1 right) the
        distance of the kerb and of the building line from the camera.
    """
    camera = sketch.camera
    sketch.screen('sky', box(-9, -9, camera.width + 9, camera.horizon + 3),
                  'sky', Paint('sky', (.62, .74, .88), -45.))
    _draw_backdrop(sketch, rng)
    edges = _road_edges(style, rng)
    sketch.road = (-edges[-1], edges[1])
    paved = rng.random() < style.sidewalk_chance
    dusty = style.sidewalk_chance < .5
    ground = (.50, .42, .31) if dusty else (.33, .40, .20)
    sketch.strip('terrain', (-160, 160), (_NEAR, 400),
                 Paint('dirt' if dusty else 'grass', jitter(rng, ground), 2.))
    lines = {}
    for side in (-1, 1):
        # One paved side next to an unpaved one is the rule on Indian roads.
        paved_here = paved and (not dusty or rng.random() < .8)
        lines[side] = _draw_margin(sketch, style, rng, side, edges[side],
                                   paved_here)
    sketch.strip('road', sketch.road, (_NEAR, 400),
                 Paint('asphalt', jitter(rng, _ASPHALT, .04), 6.))
    _draw_markings(sketch, style, rng)
    for side in (-1, 1):
        _draw_blocks(sketch, style, rng, side, *lines[side])
    return lines


def draw_hood(sketch: Sketch, style: StreetStyle,
              rng: np.random.Generator) -> None:
    """Draw the own car where the camera sees it."""
    height, width = sketch.camera.height, sketch.camera.width
    if style.hood == 'none':
        return
    if style.hood == 'bonnet':
        top = height * rng.uniform(.92, .95)
        x = np.linspace(-4, width + 4, 17)
        arch = top + (height - top) * .9 * (2 * x / width - 1)**2
        paint = Paint('hood', (.10, .11, .12), 14.)
    else:
        top = height * rng.uniform(.90, .96)
        x = np.linspace(-4, width + 4, 17)
        arch = top + height * .03 * np.sin(x / width * 5 + rng.uniform(0, 6))
        paint = Paint('hood', (.17, .14, .12), 8.)
    corners = [[width + 4, height + 4], [-4, height + 4]]
    outline = np.concatenate([np.stack([x, arch], axis=1), corners])
    sketch.screen('ego vehicle', outline, 'hood', paint)


def _road_edges(style: StreetStyle,
                rng: np.random.Generator) -> dict[int, float]:
    lanes = int(rng.integers(style.lanes[0], style.lanes[1] + 1))
    outer = int(rng.integers(0, max(lanes // 2, 1)))
    near = 1.6 + outer * _LANE + rng.uniform(.2, 2.2)
    far = 1.6 + (lanes - 1 - outer) * _LANE + rng.uniform(.2, 2.2)
    own = 1 if style.right_hand else -1
    return {own: near, -own: far}


def _draw_backdrop(sketch: Sketch, rng: np.random.Generator) -> None:
    """Skyline at the end of the street."""
    kind = rng.choice(['trees', 'houses', 'hill', 'open'], p=[.4, .3, .2, .1])
    x = np.linspace(-170, 170, 41)
    if kind == 'hill':
        rise = 26 + 14 * np.sin(x / 50 + rng.uniform(0, 6))
        paint = Paint('hill', (.28, .36, .24), -3.)
    elif kind == 'houses':
        rise = np.repeat(rng.uniform(8, 22, 14), 3)[:41]
        paint = Paint('facade', jitter(rng, (.55, .53, .50)), 2.)
    else:
        rise = rng.uniform(7, 13, 41) if kind == 'trees' else np.full(41, 2.)
        paint = Paint('foliage', (.25, .34, .17), -1.)
    label = 'building' if kind == 'houses' else 'vegetation'
    outline = np.concatenate(
        [np.stack([x, rise], axis=1), [[170, -1], [-170, -1]]])
    sketch.upright(label, 150., outline, paint)


def _draw_margin(sketch: Sketch, style: StreetStyle, rng: np.random.Generator,
                 side: int, kerb: float, paved: bool) -> tuple[float, float]:
    width = rng.uniform(*style.sidewalk)
    line = kerb + width
    if rng.random() < style.verge_chance:
        line += rng.uniform(1.2, 4.)
    if paved:
        tone = jitter(rng, (.54, .51, .48), .06)
        _strip(sketch, 'sidewalk', side, kerb, kerb + width,
               Paint('paving', tone, 4.))
        _strip(sketch, 'curb', side, kerb - .02, kerb + .28,
               Paint('curb', (.66, .65, .63), 4.))
    else:
        _strip(sketch, 'drivable fallback', side, kerb, kerb + width,
               Paint('dirt', jitter(rng, (.56, .46, .34)), 5.))
    return kerb, line


def _strip(sketch: Sketch,
           label: str,
           side: int,
           x0: float,
           x1: float,
           paint: Paint,
           z: tuple[float, float] = (_NEAR, 400)) -> None:
    left, right = sorted((side * x0, side * x1))
    sketch.strip(label, (left, right), z, paint)


def _draw_markings(sketch: Sketch, style: StreetStyle,
                   rng: np.random.Generator) -> None:
    left, right = sketch.road
    white = Paint('marking', (.82, .82, .80), 5.)
    yellow = Paint('marking', (.80, .66, .22), 5.)
    middle = yellow if style.hood == 'dashboard' else white
    if style.sidewalk_chance < .5 and rng.random() < .5:
        return  # worn away
    divider = -1.65 if style.right_hand else 1.65
    for lane in np.arange(left + 1.2, right - 1.2, .05):
        offset = (lane - divider) / _LANE
        if abs(offset - round(offset)) * _LANE > .026:
            continue
        solid = abs(offset) < .01 and rng.random() < .4
        paint = middle if abs(offset) < .01 else white
        for z in np.arange(2.5 + rng.uniform(0, 4), 60, 60 if solid else 7):
            length = 60 if solid else 3.5
            sketch.strip(None, (lane - .08, lane + .08), (z, z + length),
                         paint)
    if rng.random() < .35:
        z = rng.uniform(8, 26)
        for x in np.arange(left + .4, right - .6, 1.1):
            sketch.strip(None, (x, x + .55), (z, z + 3), white)


def _draw_blocks(sketch: Sketch, style: StreetStyle, rng: np.random.Generator,
                 side: int, kerb: float, line: float) -> None:
    kinds, weights = zip(*style.blocks.items())
    shares = np.array(weights) / sum(weights)
    borders = [_NEAR + .5]
    while borders[-1] < FAR:
        borders.append(borders[-1] + rng.uniform(7, 20))
    chosen = [str(k) for k in rng.choice(kinds, len(borders) - 1, p=shares)]
    for i in reversed(range(len(chosen))):
        z = (borders[i], borders[i + 1])
        if chosen[i] == 'gap':
            z = (z[0], min(z[1], z[0] + 8.))
            _strip(sketch, 'road', side, kerb - .1, 60.,
                   Paint('asphalt', _ASPHALT, 6.), z)
            continue
        draw = dict(
            building=_building, park=_park, wall=_wall,
            fence=_fence)[chosen[i]]
        draw(sketch, style, rng, side * line, z)


def _building(sketch: Sketch, style: StreetStyle, rng: np.random.Generator,
              x: float, z: tuple[float, float]) -> None:
    height = 1. + 3.1 * int(
        rng.integers(style.storeys[0], style.storeys[1] + 1))
    color = jitter(rng, style.facades[rng.integers(len(style.facades))], .05)
    paint = Paint('facade', color, 2.)
    outer = x + np.sign(x) * rng.uniform(8, 14)
    gable = sorted((x, outer))
    # The face towards the camera first: the street side hides its edge.
    sketch.upright('building', z[0], box(gable[0], 0, gable[1], height),
                   paint._replace(color=dimmed(color, .85)))
    sketch.wall('building', x, box(z[0], 0, z[1], height), paint)
    if rng.random() < .35:
        ridge = height + rng.uniform(1.2, 3.)
        roof = [[z[0], height], [z[1], height], [z[1] - 1, ridge],
                [z[0] + 1, ridge]]
        sketch.wall('building', x, roof,
                    Paint('concrete', jitter(rng, (.42, .24, .18)), 4.))
    awning = jitter(rng, (.5, .3, .3), .2)
    if rng.random() < .4:
        sketch.wall(None, x, box(z[0] + .5, 2.7, z[1] - .5, 3.5),
                    Paint('sign', awning, 2., .25))


def _park(sketch: Sketch, style: StreetStyle, rng: np.random.Generator,
          x: float, z: tuple[float, float]) -> None:
    side = np.sign(x)
    spots = sorted(rng.uniform(z[0], z[1], int(rng.integers(3, 6))))
    for spot in reversed(spots):
        across = x + side * rng.uniform(.4, 5.)
        draw = draw_tree if rng.random() < .6 else draw_bush
        draw(sketch, rng, across, spot)


def _wall(sketch: Sketch, style: StreetStyle, rng: np.random.Generator,
          x: float, z: tuple[float, float]) -> None:
    _park(sketch, style, rng, x + np.sign(x) * 2., z)
    height = rng.uniform(1.7, 3.2)
    color = jitter(rng, (.55, .51, .46), .08)
    outer = sorted((x, x + np.sign(x) * 8.))
    sketch.upright('wall', z[0], box(outer[0], 0, outer[1], height),
                   Paint('concrete', color, 1.))
    sketch.wall('wall', x, box(z[0], 0, z[1], height),
                Paint('concrete', color, 1.))


def _fence(sketch: Sketch, style: StreetStyle, rng: np.random.Generator,
           x: float, z: tuple[float, float]) -> None:
    if rng.random() < .5:
        _building(sketch, style, rng, x + np.sign(x) * 6., z)
    else:
        _park(sketch, style, rng, x + np.sign(x) * 1.5, z)
    height = rng.uniform(1.3, 2.2)
    tones = ((.45, .33, .22), (.40, .43, .42), (.62, .60, .56))
    paint = Paint('wood', jitter(rng, tones[rng.integers(3)]), 0.)
    sketch.wall('fence', x, box(z[0], 0, z[1], height), paint)
