# SPDX-License-Identifier: Apache-2.0
"""Whole street scenes, sampled for each data set."""
from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Callable, Dict, List, Tuple

import numpy as np

from .canvas import Color, Look, Range, Rng, Scene, any_of, box, dim, vary
from .street_objects import (BODIES, draw_bridge, draw_bush, draw_cycle,
                             draw_lamp, draw_light, draw_person, draw_pole,
                             draw_rail, draw_sign, draw_simple, draw_tree,
                             draw_vehicle)

_NEAR, _FAR, _LANE = 1.5, 95., 3.3


@dataclass(frozen=True)
class Street:
    """Camera, street and traffic of one data set, as ranges to draw from.

    Args:
        focal (Range): Focal length over image width.
        horizon (Range): Row of the horizon over image height.
        mount (Range): Camera height in metres.
        hood (bool): Whether the own bonnet is in view.
        lanes (tuple[int, int]): Fewest and most lanes.
        side (int): 1 where traffic keeps right, -1 where it keeps left.
        sidewalk (Range): Width in metres.
        paved (float): Chance of a sidewalk instead of an unpaved margin.
        blocks (dict[str, float]): Weight of each roadside block.
        storeys (tuple[int, int]): Floors of a building.
        facades (tuple[Color, ...]): Base colours of the buildings.
        counts (dict[str, Range]): Mean number of each object.
    """
    focal: Range
    horizon: Range
    mount: Range
    hood: bool
    lanes: Tuple[int, int]
    side: int
    sidewalk: Range
    paved: float
    blocks: Dict[str, float]
    storeys: Tuple[int, int]
    facades: Tuple[Color, ...]
    counts: Dict[str, Range]


# yapf: disable
_TOWN = dict(parked=(1, 5), car=(1, 4), truck=(.2, .8), bus=(.2, .8),
             motorcycle=(0, 1.2), bicycle=(.3, 1.8), person=(2, 6),
             tree=(1, 4), bush=(0, 2), pole=(2, 4), lamp=(1, 3),
             light=(.4, 2), sign=(1.2, 3))
_BLOCKS = dict(building=.52, park=.20, wall=.12, fence=.12, gap=.04)
GERMAN = Street((.72, .86), (.40, .46), (1.3, 1.6), True, (2, 3), 1,
                (2.4, 4.), 1., _BLOCKS, (3, 6),
                ((.58, .54, .47), (.50, .49, .47), (.46, .38, .34),
                 (.55, .57, .58), (.66, .60, .44)), _TOWN)
# Swiss towns: lower houses, more green.
SWISS = Street((.76, .90), (.40, .47), (1.3, 1.5), False, (2, 3), 1,
               (1.8, 3.2), .95, dict(_BLOCKS, building=.42, park=.30), (2, 5),
               ((.66, .62, .54), (.60, .52, .42), (.54, .55, .55),
                (.70, .66, .60)), _TOWN)
AMERICAN = Street((.62, .80), (.44, .54), (1.2, 1.5), True, (3, 5), 1,
                  (1.4, 2.6), .85, dict(_BLOCKS, gap=.08), (1, 9),
                  ((.52, .36, .28), (.63, .55, .46), (.44, .46, .52),
                   (.70, .70, .68)), dict(_TOWN, car=(3, 7), light=(.8, 3)))
INDIAN = Street((.68, .84), (.42, .50), (1.4, 1.8), False, (2, 3), -1,
                (1.8, 3.8), .42, _BLOCKS, (1, 4),
                ((.72, .50, .38), (.50, .62, .62), (.76, .68, .42),
                 (.62, .48, .54), (.56, .66, .48)),
                dict(_TOWN, parked=(1, 3), motorcycle=(2, 5), person=(2, 7),
                     light=(.2, 1.2), autorickshaw=(1.2, 3.),
                     billboard=(.5, 2.2), animal=(.2, 1.2), barrier=(.2, 1.4),
                     bridge=(0, .35), cart=(0, .6), rail=(0, .8)))
# German towns before a roof camera of twice the width.
FREIBURG = Street((.46, .54), (.38, .44), (1.6, 1.8), False, (2, 3), 1,
                  (2.2, 3.6), 1., _BLOCKS, (2, 5), GERMAN.facades, _TOWN)
# Count, what draws it, distances, and whether it stands behind the sidewalk.
_ROADSIDE = (
    ('tree', draw_tree, (8., 50.), True),
    ('bush', draw_bush, (7., 40.), False),
    ('pole', draw_pole, (6., 45.), False),
    ('lamp', draw_lamp, (9., 50.), False),
    ('light', draw_light, (7., 24.), False),
    ('sign', draw_sign, (6., 24.), False),
    ('billboard', None, (12., 35.), True),
    ('rail', draw_rail, (7., 30.), False),
    ('bridge', draw_bridge, (8., 30.), False),
    ('animal', None, (7., 24.), False),
    ('cart', None, (7., 24.), False),
    ('barrier', None, (8., 30.), False),
)  # yapf: disable
# yapf: enable


def sample_scene(rng: Rng, size: Tuple[int, int], street: Street) -> Scene:
    """Draw one scene.

    Args:
        rng (np.random.Generator): The only source of chance.
        size (tuple[int, int]): Image height and width.
        street (Street): Kind of street.

    Returns:
        Scene: Its parts in painting order.
    """
    height, width = size
    scene = Scene(height, width, width * rng.uniform(*street.focal),
                  width * rng.uniform(.42, .58),
                  height * rng.uniform(*street.horizon),
                  rng.uniform(*street.mount))
    margins = _draw_street(scene, street, rng)
    placed: List[Tuple[float, Callable[[], None]]] = []
    _place_roadside(scene, street, rng, margins, placed)
    _place_traffic(scene, street, rng, margins, placed)
    # the nearest is painted last
    for _, draw in sorted(placed, key=lambda item: -item[0]):
        draw()
    if street.hood:
        top = height * rng.uniform(.92, .96)
        x = np.linspace(-4, width + 4, 17)
        arch = top + (height - top) * .9 * (2 * x / width - 1)**2
        outline = [*zip(x, arch), (width + 4, height + 4), (-4, height + 4)]
        scene.screen('ego vehicle', outline, 'hood',
                     Look('hood', (.12, .12, .13), 12.))
    return scene


def _draw_street(scene: Scene, street: Street,
                 rng: Rng) -> Dict[int, Tuple[float, float]]:
    """Sky, ground, road and blocks.

    Returns:
        dict[int, tuple[float, float]]: For each side (-1 left, 1 right) the
        distance of the kerb and of the building line from the camera.
    """
    scene.screen('sky', box(-9, -9, scene.width + 9, scene.horizon + 3), 'sky',
                 Look('sky', (.62, .74, .88), -45.))
    _draw_backdrop(scene, rng)
    dusty = street.paved < .5
    soil = Look('dirt', vary(rng, (.50, .42, .31)), 2.) if dusty else Look(
        'grass', vary(rng, (.33, .40, .20)), 2.)
    scene.ground('terrain', (-160, 160), (_NEAR, 400), soil)
    lanes = int(rng.integers(street.lanes[0], street.lanes[1] + 1))
    outer = int(rng.integers(0, max(lanes // 2, 1)))
    own = 1.6 + outer * _LANE + rng.uniform(.2, 2.2)
    far = 1.6 + (lanes - 1 - outer) * _LANE + rng.uniform(.2, 2.2)
    margins = {}
    for side in (-1, 1):
        kerb = own if side == street.side else far
        line = kerb + rng.uniform(*street.sidewalk)
        if rng.random() < street.paved:
            _strip(scene, 'sidewalk', side, kerb, line,
                   Look('paving', vary(rng, (.54, .51, .48)), 4.))
            _strip(scene, 'curb', side, kerb - .02, kerb + .28,
                   Look('paving', (.66, .65, .63), 4.))
        else:
            _strip(scene, 'drivable fallback', side, kerb, line,
                   Look('dirt', vary(rng, (.56, .46, .34)), 5.))
        verge = rng.uniform(1.2, 4.) if rng.random() < .4 else 0.
        margins[side] = (kerb, line + verge)
    scene.road = (-margins[-1][0], margins[1][0])
    scene.ground('road', scene.road, (_NEAR, 400),
                 Look('asphalt', vary(rng, (.36, .36, .37), .04), 6.))
    if not dusty or rng.random() < .5:
        _draw_markings(scene, street, rng)
    for side in (-1, 1):
        _draw_blocks(scene, street, rng, side, *margins[side])
    return margins


def _strip(scene: Scene,
           label: str,
           side: int,
           x0: float,
           x1: float,
           look: Look,
           z: Range = (_NEAR, 400)) -> None:
    """A strip along one side of the street."""
    left, right = sorted((side * x0, side * x1))
    scene.ground(label, (left, right), z, look)


def _draw_backdrop(scene: Scene, rng: Rng) -> None:
    """Skyline at the end of the street."""
    x = np.linspace(-170, 170, 41)
    if rng.random() < .35:
        label, look = 'building', Look('facade', vary(rng, (.55, .53, .5)))
        rise = np.repeat(rng.uniform(8, 22, 14), 3)[:41]
    else:
        label, look = 'vegetation', Look('foliage', (.26, .35, .2), -1.)
        rise = rng.uniform(6, 13, 41) + 10 * rng.random()
    scene.upright(label, 150., [*zip(x, rise), (170, -1), (-170, -1)], look)


def _draw_markings(scene: Scene, street: Street, rng: Rng) -> None:
    white = Look('marking', (.82, .82, .80), 5.)
    divider = -1.65 * street.side
    for step in range(-6, 7):
        x = divider + step * _LANE
        if not scene.road[0] + 1.2 < x < scene.road[1] - 1.2:
            continue
        solid = step == 0 and rng.random() < .4
        for z in np.arange(2.5 + rng.uniform(0, 4), 60, 60 if solid else 7):
            scene.ground(None, (x - .08, x + .08),
                         (z, z + (60 if solid else 3.5)), white)
    if rng.random() < .35:
        z = rng.uniform(8, 26)
        for x in np.arange(scene.road[0] + .4, scene.road[1] - .6, 1.1):
            scene.ground(None, (x, x + .55), (z, z + 3), white)


def _draw_blocks(scene: Scene, street: Street, rng: Rng, side: int,
                 kerb: float, line: float) -> None:
    """Buildings, parks, walls, fences and side streets, the far ones first."""
    borders = [_NEAR + .5]
    while borders[-1] < _FAR:
        borders.append(borders[-1] + rng.uniform(7, 20))
    weights = np.array(list(street.blocks.values()))
    kinds = rng.choice(
        list(street.blocks), len(borders) - 1, p=weights / weights.sum())
    for kind, start, end in reversed([*zip(kinds, borders, borders[1:])]):
        if kind == 'gap':
            _strip(scene, 'road', side, kerb - .1, 60.,
                   Look('asphalt', (.36, .36, .37), 6.),
                   (start, min(end, start + 8.)))
        elif kind == 'building':
            _building(scene, street, rng, side * line, (start, end))
        else:
            if kind == 'fence' and rng.random() < .5:
                _building(scene, street, rng, side * (line + 6), (start, end))
            else:
                _park(scene, rng, side * (line + 1), (start, end))
            if kind != 'park':
                _barricade(scene, rng, str(kind), side * line, (start, end))


def _building(scene: Scene, street: Street, rng: Rng, x: float,
              z: Range) -> None:
    storeys = int(rng.integers(street.storeys[0], street.storeys[1] + 1))
    height, color = 1. + 3.1 * storeys, any_of(rng, street.facades)
    gable = sorted((x, x + math.copysign(rng.uniform(8, 14), x)))
    # the end towards the camera first: the street side hides its edge
    scene.upright('building', z[0], box(gable[0], 0, gable[1], height),
                  Look('facade', dim(color, .85), 2.))
    scene.wall('building', x, box(z[0], 0, z[1], height),
               Look('facade', color, 2.))
    if rng.random() < .35:
        ridge = height + rng.uniform(1.2, 3.)
        scene.wall('building', x, [(z[0], height), (z[1], height),
                                   (z[1] - 1, ridge), (z[0] + 1, ridge)],
                   Look('concrete', vary(rng, (.42, .24, .18)), 4.))
    if rng.random() < .4:
        scene.wall(None, x, box(z[0] + .5, 2.7, z[1] - .5, 3.5),
                   Look('sign', vary(rng, (.5, .3, .3), .2), 2., .25))


def _park(scene: Scene, rng: Rng, x: float, z: Range) -> None:
    for spot in sorted(rng.uniform(*z, int(rng.integers(3, 6))))[::-1]:
        across = x + math.copysign(rng.uniform(.4, 5.), x)
        draw = draw_tree if rng.random() < .6 else draw_bush
        draw(scene, rng, across, spot)


def _barricade(scene: Scene, rng: Rng, kind: str, x: float, z: Range) -> None:
    """Wall or fence along the building line."""
    height = rng.uniform(1.4, 2.8)
    look = Look('concrete', vary(rng, (.55, .51, .46)), 1.)
    if kind == 'fence':
        look = Look('wood', vary(rng, (.45, .36, .28)))
    else:
        end = sorted((x, x + math.copysign(8., x)))
        scene.upright(kind, z[0], box(end[0], 0, end[1], height), look)
    scene.wall(kind, x, box(z[0], 0, z[1], height), look)


def _number(street: Street, rng: Rng, kind: str) -> int:
    mean = rng.uniform(*street.counts.get(kind, (0., 0.)))
    return int(mean) + int(rng.random() < mean % 1)


def _depth(rng: Rng, reach: Range) -> float:
    """Distance with more weight near the camera, where things are large."""
    return float(reach[0] * (reach[1] / reach[0])**(rng.random()**1.3))


def _place_roadside(scene: Scene, street: Street, rng: Rng,
                    margins: Dict[int, Tuple[float,
                                             float]], placed: list) -> None:
    for kind, draw, reach, behind in _ROADSIDE:
        for _ in range(_number(street, rng, kind)):
            side, z = int(rng.choice([-1, 1])), _depth(rng, reach)
            kerb, line = margins[side]
            x = side * (line - .5 if behind else kerb + rng.uniform(.25, .9))
            painter = draw or partial(draw_simple, kind=kind)
            placed.append((z, partial(painter, scene, rng=rng, x=x, z=z)))
    for _ in range(_number(street, rng, 'person')):
        side = int(rng.choice([-1, 1]))
        kerb, line = margins[side]
        crossing = rng.random() < .2
        x = rng.uniform(-kerb, kerb) if crossing else side * rng.uniform(
            kerb + .4, max(line - .4, kerb + .8))
        z = _depth(rng, (6.5 if crossing else 5., 26.))
        placed.append((z, partial(draw_person, scene, rng, x, z)))
    for kind in ('motorcycle', 'bicycle'):
        for _ in range(_number(street, rng, kind)):
            side, ridden = int(rng.choice([-1, 1])), rng.random() < .72
            kerb, z = margins[side][0], _depth(rng, (5., 20.))
            x = side * (
                rng.uniform(1.6, max(kerb - .4, 1.7)) if ridden else kerb +
                rng.uniform(.5, 1.2))
            placed.append(
                (z, partial(draw_cycle, scene, rng, kind, x, z, ridden)))


def _place_traffic(scene: Scene, street: Street, rng: Rng,
                   margins: Dict[int, Tuple[float,
                                            float]], placed: list) -> None:
    """Fill the lanes so that no two vehicles stand in one another."""
    taken: List[Tuple[float, float, float]] = []
    lanes = [
        x for x in np.arange(-6, 7) * _LANE
        if scene.road[0] + 1.3 < x < scene.road[1] - 1.3
    ] or [0.]
    for kind, near in (('parked', 6.), ('autorickshaw', 5.5), ('bus', 13.),
                       ('truck', 11.), ('car', 7.)):
        for _ in range(_number(street, rng, kind)):
            z, parked = _depth(rng, (near, 45.)), kind == 'parked'
            if parked:
                side = int(rng.choice([-1, 1]))
                x, body = side * (margins[side][0] - 1.1), 'car'
                # a narrow road leaves no room beside the own lane
                if abs(x) < 2.2:
                    continue
            else:
                x, body = rng.choice(lanes) + rng.normal(0, .25), kind
            end = z + BODIES[body][0][2] + 1.5
            if any(
                    abs(x - other) < 2.3 and z < b and a < end
                    for other, a, b in taken):
                continue
            taken.append((x, z - 1.5, end))
            oncoming = x * street.side < -1.
            placed.append((z,
                           partial(draw_vehicle, scene, rng, body, float(x), z,
                                   bool(oncoming), not parked)))
