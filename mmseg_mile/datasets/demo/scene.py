# SPDX-License-Identifier: Apache-2.0
"""Sample a whole street scene."""
from __future__ import annotations

from functools import partial
from typing import Callable

import numpy as np

from . import furniture
from .camera import Camera
from .cycles import draw_cycle
from .people import draw_animal, draw_person
from .sketch import Sketch
from .street import draw_hood, draw_street
from .street_styles import StreetStyle
from .vehicles import draw_cart, draw_vehicle

_LANE = 3.3
# Name of the count, what draws it, and the distances it is found at.
_ROADSIDE = (
    ('tree', furniture.draw_tree, (8., 50.)),
    ('bush', furniture.draw_bush, (7., 40.)),
    ('pole', furniture.draw_pole, (6., 45.)),
    ('lamp', furniture.draw_lamp, (9., 50.)),
    ('light', furniture.draw_traffic_light, (7., 24.)),
    ('sign', furniture.draw_sign, (6., 24.)),
    ('billboard', furniture.draw_billboard, (12., 35.)),
    ('rail', furniture.draw_guard_rail, (7., 30.)),
)


def sample_scene(rng: np.random.Generator, size: tuple[int, int],
                 style: StreetStyle) -> Sketch:
    """Draw one scene.

    Args:
        rng (np.random.Generator): The only source of chance.
        size (tuple[int, int]): Image height and width.
        style (StreetStyle): Kind of street.

    Returns:
        Sketch: Its parts in painting order.
    """
    height, width = size
    camera = Camera(
        height,
        width,
        focal=width * rng.uniform(*style.focal),
        center_x=width * rng.uniform(.42, .58),
        horizon=height * rng.uniform(*style.horizon),
        mount=rng.uniform(*style.mount))
    sketch = Sketch(camera)
    lines = draw_street(sketch, style, rng)
    placed: list[tuple[float, Callable[[], None]]] = []
    _place_roadside(sketch, style, rng, lines, placed)
    _place_traffic(sketch, style, rng, lines, placed)
    _place_people(sketch, style, rng, lines, placed)
    # Painter's algorithm: the nearest is drawn last.
    for _, draw in sorted(placed, key=lambda item: -item[0]):
        draw()
    draw_hood(sketch, style, rng)
    return sketch


def _number(style: StreetStyle, rng: np.random.Generator, kind: str) -> int:
    low, high = style.counts.get(kind, (0., 0.))
    mean = rng.uniform(low, high)
    return int(mean) + int(rng.random() < mean % 1)


def _depth(rng: np.random.Generator, near: float, far: float) -> float:
    """Distance with more weight near the camera, where things are large."""
    return float(near * (far / near)**(rng.random()**1.3))


def _place_roadside(sketch: Sketch, style: StreetStyle,
                    rng: np.random.Generator, lines: dict,
                    placed: list) -> None:
    for kind, draw, reach in _ROADSIDE:
        for _ in range(_number(style, rng, kind)):
            side = int(rng.choice([-1, 1]))
            kerb, line = lines[side]
            wide = kind in ('tree', 'billboard')
            margin = (line - .5) if wide else kerb + rng.uniform(.25, .9)
            x, z = side * margin, _depth(rng, *reach)
            placed.append((z, partial(draw, sketch, rng, x, z)))
    for _ in range(_number(style, rng, 'bridge')):
        z = rng.uniform(28, 50)
        placed.append((z, partial(furniture.draw_bridge, sketch, rng, 0., z)))
    for _ in range(_number(style, rng, 'barrier')):
        x = rng.uniform(*sketch.road)
        x, z = np.sign(x) * max(abs(x), 2.4), _depth(rng, 8., 30.)
        placed.append((z, partial(furniture.draw_barrier, sketch, rng, x, z)))


def _place_traffic(sketch: Sketch, style: StreetStyle,
                   rng: np.random.Generator, lines: dict,
                   placed: list) -> None:
    """Fill the lanes so that no two vehicles stand in one another."""
    own = 1 if style.right_hand else -1
    taken: list[tuple[float, float, float]] = []

    def free(x: float, z: float, length: float) -> bool:
        clash = any(
            abs(x - other) < 2.3 and z < end + 1.5 and start < z + length + 1.5
            for other, start, end in taken)
        if not clash:
            taken.append((x, z, z + length))
        return not clash

    for _ in range(_number(style, rng, 'parked')):
        side = int(rng.choice([-1, 1]))
        x, z = side * (lines[side][0] - 1.1), _depth(rng, 6., 45.)
        # A narrow road leaves no room to park beside the own lane.
        if abs(x) > 2.2 and free(x, z, 4.5):
            oncoming = bool(side != own)
            placed.append((z,
                           partial(draw_vehicle, sketch, rng, 'car', x, z,
                                   oncoming, False)))
    lanes = _lanes(sketch, own)
    for kind, near in (('autorickshaw', 5.5), ('bus', 13.), ('truck', 11.),
                       ('car', 7.)):
        for _ in range(_number(style, rng, kind)):
            lane = lanes[rng.integers(len(lanes))]
            x, z = lane + rng.normal(0, .25), _depth(rng, near, 45.)
            length = 11. if kind == 'bus' else 7. if kind == 'truck' else 4.5
            if free(x, z, length):
                oncoming = bool(lane * own < -1.)
                placed.append(
                    (z, partial(draw_vehicle, sketch, rng, kind, x, z,
                                oncoming)))


def _lanes(sketch: Sketch, own: int) -> list[float]:
    left, right = sketch.road
    steps = np.arange(-6, 7) * _LANE
    inside = [float(x) for x in steps if left + 1.3 < x < right - 1.3]
    return inside or [0.]


def _place_people(sketch: Sketch, style: StreetStyle, rng: np.random.Generator,
                  lines: dict, placed: list) -> None:
    crowded = style.counts.get('autorickshaw') is not None
    for kind in ('motorcycle', 'bicycle'):
        for _ in range(_number(style, rng, kind)):
            side = int(rng.choice([-1, 1]))
            ridden = bool(rng.random() < .72)
            kerb = lines[side][0]
            if ridden:
                x = side * rng.uniform(1.6, max(kerb - .4, 1.7))
            else:
                x = side * (kerb + rng.uniform(.5, 1.2))
            z = _depth(rng, 5., 20.)
            placed.append(
                (z, partial(draw_cycle, sketch, rng, kind, x, z, ridden)))
    for _ in range(_number(style, rng, 'person')):
        side = int(rng.choice([-1, 1]))
        kerb, line = lines[side]
        crossing = rng.random() < (.3 if crowded else .15)
        x = rng.uniform(-kerb, kerb) if crossing else side * rng.uniform(
            kerb + .4, max(line - .4, kerb + .8))
        z = _depth(rng, 6.5 if crossing else 5., 26.)
        placed.append((z, partial(draw_person, sketch, rng, x, z)))
    for kind, draw in (('animal', draw_animal), ('cart', draw_cart)):
        for _ in range(_number(style, rng, kind)):
            side = int(rng.choice([-1, 1]))
            x = side * (lines[side][0] + rng.uniform(-.8, 1.5))
            z = _depth(rng, 7., 24.)
            placed.append((z, partial(draw, sketch, rng, x, z)))
