# SPDX-License-Identifier: Apache-2.0
"""Fabricated scenes photographed by day and night, and in infrared.

Images are painted at twice their size and averaged down. Light is RGB float
in units of white, temperatures are degrees Celsius.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Dict, Mapping, NamedTuple, Sequence, Tuple

import cv2
import numpy as np

from .canvas import MATERIALS, PLANES, SKY_DISTANCE, Color, Rng, Scene

SCALE = 2
# yapf: disable
# Strength of fine and of coarse grain by material.
_GRAIN = dict(asphalt=(.10, .04), marking=(.10, .10), paving=(.10, .08),
              dirt=(.16, .20), grass=(.26, .24), facade=(.07, .08),
              glass=(.06, .20), foliage=(.42, .38), wood=(.20, .12),
              concrete=(.14, .16), metal=(.05, .10), rubber=(.1, .1),
              skin=(.05, .05), cloth=(.12, .14), sign=(.05, .06),
              hood=(.03, .10))
# Degrees that full sunshine adds.
_SUNSHINE = dict(asphalt=11., marking=8., paving=9., dirt=11., grass=3.,
                 facade=5., wood=5., concrete=5., metal=3., rubber=5.,
                 sign=3., hood=4., cloth=2.)
# Share of snow that lies.
_SNOW = dict(grass=.93, dirt=.93, paving=.83, asphalt=.35, marking=.35,
             foliage=.42)
# yapf: enable
# Infrared counts per degree, and counts of air at 8 degrees.
_COUNTS, _ZERO, _ZERO_DEGREES = 62., 22450., 8.
# Real infrared frames are 1920 wide; warping leaves the others without data.
_FRAME_WIDTH, _FIRST_COLUMN, _LAST_COLUMN = 1920, 300, 1710


@dataclass
class Pixels:
    """Facts of each pixel of a scene, (H, W) unless noted.

    ``x``, ``y``, ``z`` are world positions in metres, ``along`` runs along
    the surface: z on a wall, x elsewhere. ``color`` is (H, W, 3).
    """
    scene: Scene
    part: np.ndarray
    material: np.ndarray
    plane: np.ndarray
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    along: np.ndarray
    color: np.ndarray
    heat: np.ndarray
    glow: np.ndarray

    @classmethod
    def of(cls, scene: Scene) -> 'Pixels':
        """Rasterise a scene."""
        shape = scene.height * SCALE, scene.width * SCALE
        drawn = np.zeros(shape, np.int32)
        for index, one in enumerate(scene.parts):
            corners = np.rint((one.outline + .5) * SCALE - .5)
            cv2.fillPoly(drawn, [corners.astype(np.int32)], index)

        def gather(values: Sequence, kind: type) -> np.ndarray:
            return np.array(values, kind)[drawn]

        plane = gather([PLANES.index(p.plane) for p in scene.parts], np.uint8)
        distance = gather([p.distance for p in scene.parts], np.float32)
        rows = ((np.arange(shape[0]) + .5) / SCALE - .5)[:, None]
        columns = ((np.arange(shape[1]) + .5) / SCALE - .5)[None]
        below = np.maximum(rows - scene.horizon, .2)
        aside = np.maximum(np.abs(columns - scene.center), .2)
        wall = plane == PLANES.index('wall')
        z = np.where(plane == PLANES.index('ground'),
                     scene.focal * scene.mount / below, distance)
        z = np.where(wall, scene.focal * distance / aside, z)
        z = z.clip(.5, SKY_DISTANCE).astype(np.float32)
        x = ((columns - scene.center) * z / scene.focal).astype(np.float32)
        y = (scene.mount + (scene.horizon - rows) * z / scene.focal).astype(
            np.float32)
        looks = [p.look for p in scene.parts]
        return cls(
            scene, drawn,
            gather([MATERIALS.index(k.material) for k in looks], np.uint8),
            plane, x, y, z, np.where(wall, z, x),
            gather([k.color for k in looks], np.float32),
            gather([k.heat for k in looks], np.float32),
            gather([k.glow for k in looks], np.float32))

    def of_material(self, *names: str) -> np.ndarray:
        """Mask of materials."""
        return self.by_material(dict.fromkeys(names, 1.)) > 0

    def by_material(self, values: Mapping[str, float]) -> np.ndarray:
        """A value for each pixel's material; 0 if it is missing."""
        table = np.zeros(256, np.float32)
        for name, value in values.items():
            table[MATERIALS.index(name)] = value
        return table[self.material]

    def on(self, plane: str) -> np.ndarray:
        """Mask of a plane."""
        return self.plane == PLANES.index(plane)

    def windows(self) -> Tuple[np.ndarray, np.ndarray]:
        """Mask of the facades' windows, and a number in [0, 1) for each."""
        dice = np.random.default_rng(0).random((3, 1024)).astype(np.float32)
        part = self.part & 1023
        column = self.along / (2. + 1.6 * dice[0][part]) + dice[1][part]
        row = (self.y - .3) / 3.1
        inside = self.of_material('facade') & (self.z < 120) & (row > 0)
        inside &= (np.abs(column % 1 - .5) < .28) & (row % 1 > .28)
        inside &= row % 1 < .82
        place = np.floor(column).astype(int) * 37 + part * 29
        place += np.floor(row).astype(int) * 101
        return inside, dice[2][place & 1023]


def noise(rng: Rng, shape: Tuple[int, ...], cell: int) -> np.ndarray:
    """Smooth noise of unit variance, with features of ``cell`` pixels."""
    height, width = shape[:2]
    coarse = rng.standard_normal((height // cell + 2, width // cell + 2),
                                 np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def _mixed(image: np.ndarray, color: Color, share: np.ndarray) -> np.ndarray:
    """Replace the (H, W) ``share`` of an image by a colour."""
    share = share.astype(np.float32)[..., None]
    return image * (1 - share) + share * np.array(color, np.float32)


def _tyre_tracks(x: np.ndarray) -> np.ndarray:
    """1 where tyres run, 0 between, from the sideways position in metres."""
    across = np.abs((x / 3.3 + .5) % 1 - .5) * 3.3
    return np.clip(1 - np.abs(across - .8) / .42, 0., 1.)


def _surface(pixels: Pixels, rng: Rng) -> np.ndarray:
    """Colour of every surface under even light, (H, W, 3)."""
    shape = pixels.z.shape
    near = np.minimum(14. / pixels.z, 1.)
    fine = noise(rng, shape, SCALE)
    fine += near * (noise(rng, shape, 3 * SCALE) - fine)
    coarse = noise(rng, shape, 12 * SCALE)
    shade = 1 + fine * pixels.by_material({k: v[0] for k, v in _GRAIN.items()})
    shade += coarse * pixels.by_material({k: v[1] for k, v in _GRAIN.items()})
    shade *= 1 - .1 * pixels.of_material('asphalt') * _tyre_tracks(pixels.x)
    slats = pixels.of_material('wood') & pixels.on('wall')
    shade[slats & (pixels.along / .32 % 1 < .28)] *= .45
    slabs = pixels.of_material('paving') & (pixels.z < 30)
    shade[slabs
          & ((pixels.x / .9 % 1 < .08) | (pixels.z / .9 % 1 < .08))] *= .8
    # upright things are darker towards the ground
    shade *= 1 - np.clip(.26 - .12 * pixels.y, 0., .26) * ~pixels.on('ground')
    color = pixels.color.copy()
    color[pixels.windows()[0]] = rng.uniform(.16, .42) * np.array(
        [.9, 1., 1.15])
    return np.minimum(color * shade.clip(.25, 1.9)[..., None], 1.)


class _Daylight(NamedTuple):
    """The sky and its light; ``side`` of the sun is 0 where it is overcast."""
    zenith: Color
    rim: Color
    ambient: Color
    sun: Color
    side: int
    clouds: float


def _overcast(level: float) -> _Daylight:
    return _Daylight((level, ) * 3, (level * 1.1, ) * 3, (.55 * level, ) * 3,
                     (.5 * level, ) * 3, 0, .8)


def _by_day(color: np.ndarray, pixels: Pixels, light: _Daylight,
            rng: Rng) -> np.ndarray:
    """Shade surfaces by the sky and the sun, and paint the sky."""
    shade = np.full(pixels.z.shape, .8, np.float32)
    wall, ground = pixels.on('wall'), pixels.on('ground')
    shade[wall] = .7
    shade[ground] = 1.
    if light.side:
        lit = np.sign(pixels.x) != light.side
        shade[wall] = np.where(lit, 1., .1)[wall]
        # buildings on the sun's side throw their shadow over the street
        left, right = pixels.scene.road
        reach = rng.uniform(left - 2, right + 1) * light.side
        blocks = 1.6 * np.sign(
            np.sin(pixels.z * rng.uniform(.25, .5) + rng.uniform(0, 6)))
        shade[ground & (light.side * pixels.x > reach + blocks)] = .08
    ambient, sun, zenith, rim = np.array(
        (light.ambient, light.sun, light.zenith, light.rim), np.float32)
    image = color * (ambient + shade[..., None] * sun)
    rise = np.linspace(0, 1, len(image), dtype=np.float32)[:, None, None]
    sky = (1 - rise) * zenith + rise * rim
    cloud = noise(rng, shade.shape, 40 * SCALE)
    cloud = np.clip(.5 * cloud + light.clouds - .5, 0., 1.)[..., None]
    sky = sky + .6 * cloud * (1.08 * rim - sky)
    return np.where(pixels.on('sky')[..., None], sky, image)


def _by_night(color: np.ndarray, pixels: Pixels, rng: Rng) -> np.ndarray:
    """Shade surfaces by lamps, headlights and lit windows."""
    warmth = rng.uniform(.35, .75)
    warm = np.array([1., .5 + .45 * warmth, warmth])
    x, y, z = pixels.x, pixels.y, pixels.z
    lamps = np.full(z.shape, .06, np.float32)
    for lamp_x, lamp_y, lamp_z in pixels.scene.lamps:
        square = (x - lamp_x)**2 + (y - lamp_y)**2 + (z - lamp_z)**2
        lamps += 26 * np.clip((lamp_y - y) / lamp_y, 0, 1) / (square + 14)
    # far streets are lit by lamps that are out of view
    lamps += .24 * np.clip((z - 18) / 40, 0, 1) * (y < 6) * (z < 140)
    beam = np.exp(-(x / (1.6 + .2 * z))**2) / (1 + (z / 20)**2)
    beam *= .85 / (1 + np.exp(np.clip(2.5 * (y - 1.1), -20, 20)))
    beam[pixels.on('hood')] = .02
    moon = rng.uniform(.03, .08) * np.array([.55, .7, 1.])
    light = moon + lamps[..., None] * warm + beam[..., None] * (.95, .95, .88)
    image = color * light
    haze = rng.uniform(.05, .17) * np.linspace(.4, 1.4, len(image))
    sky = haze[:, None, None] * (.5 * warm + (.28, .35, .5))
    image = np.where(pixels.on('sky')[..., None], sky, image)
    windows, chance = pixels.windows()
    bright = windows & (chance < rng.uniform(.12, .4))
    image[bright] = (.35 + 1.6 * chance[bright][:, None]) * warm
    image += pixels.glow[..., None] * (.25 + .75 * color)
    return _bloom(image.astype(np.float32) * rng.uniform(.8, 1.15), 1.1)


def _bloom(image: np.ndarray, strength: float) -> np.ndarray:
    """Halo around whatever outshines the sensor."""
    excess = np.clip(image - .75, 0., 3.)
    small = cv2.resize(
        excess, None, fx=.25, fy=.25, interpolation=cv2.INTER_AREA)
    halo = cv2.addWeighted(
        cv2.GaussianBlur(small, (0, 0), 1.25 * SCALE), 1.,
        cv2.GaussianBlur(small, (0, 0), 5. * SCALE), .5, 0)
    return image + strength * cv2.resize(halo, image.shape[1::-1])


def _fog(image: np.ndarray, z: np.ndarray, density: float,
         airlight: Color) -> np.ndarray:
    """Koschmieder's law ``I = J t + A (1 - t)``, ``t = exp(-density z)``."""
    return _mixed(image, airlight, 1 - np.exp(-density * z))


def _wet(image: np.ndarray, pixels: Pixels, rng: Rng) -> np.ndarray:
    """Mirror what stands above the street in it; streaks in the air."""
    height, width = image.shape[:2]
    horizon = int(round(pixels.scene.horizon * SCALE))
    rows = np.clip(2 * horizon + 6 * SCALE - np.arange(height), 0, height - 1)
    mirror = cv2.blur(image[rows].astype(np.float32), (3 * SCALE, 14 * SCALE))
    share = rng.uniform(.35, .65) * np.clip(
        .9 + .2 * noise(rng, image.shape, 14 * SCALE), 0., 1.)
    share = share * pixels.by_material(
        dict(asphalt=1., marking=1., paving=.55))
    share = share[..., None]
    image = image * (1 - .25 * (share > 0)) * (1 - share) + mirror * share
    streaks = np.zeros((height, width), np.float32)
    lean = rng.uniform(-.25, .25)
    for _ in range(int(height * width * rng.uniform(.0010, .0022) / SCALE**2)):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        length = rng.uniform(3, 9) * SCALE
        cv2.line(streaks, (int(x), int(y)),
                 (int(x + lean * length), int(y + length)),
                 rng.uniform(.10, .35), 1)
    return _mixed(image, (.85, .85, .85), streaks)


def _snowed(color: np.ndarray, pixels: Pixels, rng: Rng) -> np.ndarray:
    """Cover what faces upwards; traffic keeps its tracks half clear."""
    patches = noise(rng, color.shape, 10 * SCALE)
    patches += .5 * noise(rng, color.shape, 3 * SCALE)
    cover = pixels.by_material(_SNOW)
    loose = pixels.of_material('asphalt', 'marking', 'foliage')
    cover += loose * (.4 * patches + rng.uniform(-.2, .5))
    road = pixels.of_material('asphalt', 'marking')
    cover -= .9 * road * _tyre_tracks(pixels.x)
    # tops of cars, walls and signs, seen edge-on
    top = np.zeros(cover.shape, bool)
    top[2 * SCALE:] = pixels.z[:-2 * SCALE] > pixels.z[2 * SCALE:] + 1.5
    cover[top & pixels.of_material('metal', 'concrete', 'wood', 'sign')] = .85
    return _mixed(color, (.86, .88, .92), cover.clip(0., .95))


def _flakes(image: np.ndarray, rng: Rng) -> np.ndarray:
    """Falling snow: many small flakes, a few large and blurred ones."""
    height, width = image.shape[:2]
    for radius, share, blur in ((.5, .0022, .4), (1.1, .0007, .8),
                                (2.4, .00012, 1.4)):
        layer: np.ndarray = np.zeros((height, width), np.float32)
        count = height * width * share / SCALE**2 * rng.uniform(.3, 1.5)
        for _ in range(int(count)):
            center = int(rng.integers(width)), int(rng.integers(height))
            cv2.circle(layer, center, max(int(radius * SCALE), 1),
                       rng.uniform(.4, .9), -1)
        layer = cv2.GaussianBlur(layer, (0, 0), blur * SCALE)
        image = _mixed(image, (.95, .95, .95), layer)
    return image


# -- the colour cameras of the data sets, each in its own light ---------------


def _clear_day(pixels: Pixels, rng: Rng) -> np.ndarray:
    bright, grey = rng.uniform(.9, 1.1), rng.random() < .45
    light = _Daylight((.52, .68, .88), (.88, .90, .90),
                      (.42 * bright, .46 * bright, .52 * bright),
                      (.72 * bright, .68 * bright, .58 * bright),
                      int(rng.choice([-1, 1])), rng.uniform(0, .6))
    image = _by_day(
        _surface(pixels, rng), pixels,
        _overcast(.85) if grey else light, rng)
    return _fog(image, pixels.z, .0012, (.85, .88, .90))


def _foggy_day(pixels: Pixels, rng: Rng) -> np.ndarray:
    image = _by_day(_surface(pixels, rng), pixels, _overcast(.85), rng)
    level = rng.uniform(.62, .84)
    return _fog(image, pixels.z, rng.uniform(.018, .050),
                (level, level * 1.01, level * 1.03))


def _rainy_day(pixels: Pixels, rng: Rng) -> np.ndarray:
    level = rng.uniform(.60, .86)
    image = _by_day(.9 * _surface(pixels, rng), pixels, _overcast(level), rng)
    image = _fog(image, pixels.z, rng.uniform(.005, .013),
                 (level * .92, level * .97, level * 1.04))
    return _wet(image, pixels, rng)


def _snowy_day(pixels: Pixels, rng: Rng) -> np.ndarray:
    level = rng.uniform(.80, .95)
    color = _snowed(_surface(pixels, rng), pixels, rng)
    image = _by_day(color, pixels, _overcast(level), rng)
    image = _fog(image, pixels.z, rng.uniform(.006, .016),
                 (level * .93, level * .95, level))
    return _flakes(image, rng)


def _night(pixels: Pixels, rng: Rng) -> np.ndarray:
    return _by_night(_surface(pixels, rng), pixels, rng)


def _american(pixels: Pixels, rng: Rng) -> np.ndarray:
    """Any hour of the day, through a windscreen that reflects."""
    hour = rng.choice(['noon', 'grey', 'dusk', 'night'], p=[.42, .2, .26, .12])
    if hour == 'night':
        return _night(pixels, rng)
    light = _overcast(1.05)
    side, clouds = int(rng.choice([-1, 1])), rng.uniform(0, .8)
    if hour == 'noon':
        light = _Daylight((.22, .45, .85), (.70, .82, .95), (.38, .42, .50),
                          (.95, .90, .76), side, clouds)
    elif hour == 'dusk':
        light = _Daylight((.26, .30, .52), (.98, .62, .36), (.32, .29, .36),
                          (.46, .30, .20), side, clouds)
    image = _by_day(_surface(pixels, rng), pixels, light, rng)
    image = _bloom(
        _fog(image, pixels.z, .0015, light.rim).astype(np.float32), .3)
    veil = np.linspace(0, 1, len(image))[:, None]**2 * rng.uniform(0, .14)
    return _mixed(image, (.75, .80, .86),
                  np.broadcast_to(veil, image.shape[:2]))


def _indian(pixels: Pixels, rng: Rng) -> np.ndarray:
    dust = rng.uniform(0, 1)
    light = _Daylight(
        (.74, .80, .84 - .1 * dust), (.93, .90, .86 - .1 * dust),
        (.52, .49, .46 - .06 * dust), (.58, .53, .46 - .08 * dust),
        int(rng.choice([-1, 0, 1])), rng.uniform(.3, .9))
    image = _by_day(_surface(pixels, rng), pixels, light, rng)
    return _fog(image, pixels.z, rng.uniform(.004, .013),
                (.88, .83, .77 - .12 * dust))


class _Sensor(NamedTuple):
    """Gain per channel, contrast, saturation, noise and vignette."""
    gain: Color
    contrast: float
    saturation: float
    noise: float
    vignette: float


_ACDC = _Sensor((.95, 1., 1.02), 1.0, .9, .014, .15)
# A night exposure is long and noisy.
_DARK = _Sensor((1., .98, .98), 1.0, .9, .030, .15)
CONDITIONS: Dict[str, Tuple[Callable[[Pixels, Rng], np.ndarray], _Sensor]] = {
    'cityscapes': (_clear_day, _Sensor((.86, .98, .88), 1.0, .75, .012, .12)),
    'fog': (_foggy_day, _ACDC),
    'rain': (_rainy_day, _ACDC),
    'snow': (_snowy_day, _ACDC),
    'night': (_night, _DARK),
    'bdd100k': (_american, _Sensor((.96, 1., 1.12), 1.25, 1.15, .018, .25)),
    'idd': (_indian, _Sensor((1.04, 1., .95), 1.05, 1.05, .016, .10)),
    'heatnet_day': (_clear_day, _Sensor((1.02, 1., .96), 1.15, .85, .016,
                                        .08)),
    'heatnet_night': (_night, _DARK),
}


def render(pixels: Pixels, condition: str, rng: Rng) -> np.ndarray:
    """Photograph a scene.

    Args:
        pixels (Pixels): The scene.
        condition (str): Key of ``CONDITIONS``.
        rng (np.random.Generator): Source of light, weather and noise.

    Returns:
        np.ndarray: (H, W, 3) uint8 BGR.
    """
    light, sensor = CONDITIONS[condition]
    size = pixels.scene.width, pixels.scene.height
    image = np.clip(light(pixels, rng), 0., 1.5).astype(np.float32)
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    mix = np.full((3, 3), (1 - sensor.saturation) / 3)
    mix += sensor.saturation * np.eye(3)
    image = image @ (mix @ np.diag(sensor.gain)).T.astype(np.float32)
    image = image.mean() + sensor.contrast * (image - image.mean())
    y = np.linspace(-1, 1, size[1])[:, None, None]
    x = np.linspace(-1, 1, size[0])[None, :, None]
    image = image * (1 - sensor.vignette / 2 * (x * x + y * y))
    image += sensor.noise * rng.standard_normal(image.shape)
    image = np.rint(np.clip(image, 0., 1.) * 255).astype(np.uint8)
    return cv2.cvtColor(image, cv2.COLOR_RGB2BGR)


# -- infrared ----------------------------------------------------------------


def render_thermal(pixels: Pixels, night: bool, rng: Rng) -> np.ndarray:
    """Take a long-wave infrared picture: heat instead of colour.

    Raw 16-bit counts as in HeatNet, which clips them to 21800..25000.

    Args:
        pixels (Pixels): The scene.
        night (bool): No sun, colder air, windows lit.
        rng (np.random.Generator): Source of weather and noise.

    Returns:
        np.ndarray: (H, W) uint16 counts; 0 outside the valid columns.
    """
    shape, width = pixels.z.shape, pixels.scene.width
    air = rng.normal(7., 2.) if night else rng.normal(18., 2.5)
    above = pixels.heat.copy()
    # what keeps its own temperature stands out less in warmer air
    above[pixels.of_material('skin', 'cloth')] *= (31 - air) / 23
    if not night:
        shaded = pixels.on('wall') & (np.sign(pixels.x) == rng.choice([-1, 1]))
        above += rng.uniform(.15,
                             1.) * pixels.by_material(_SUNSHINE) * np.where(
                                 shaded, .25, 1)
    windows, chance = pixels.windows()
    above[windows] = np.where(chance < .35, 7. if night else 1.,
                              -1.5 if night else -3.)[windows]
    rough = .45 + .65 * pixels.of_material('foliage', 'grass', 'dirt')
    above += rough * noise(rng, shape, 2 * SCALE)
    above += .5 * noise(rng, shape, 18 * SCALE)
    degrees = air + above * np.exp(-pixels.z / 260.)
    depth = rng.uniform(7., 10.) if night else rng.uniform(12., 20.)
    sky = air - depth * np.linspace(1., .55, shape[0])[:, None]
    sky = sky + .7 * noise(rng, shape, 36 * SCALE)
    degrees = np.where(pixels.on('sky'), sky, degrees)
    counts: np.ndarray = _ZERO + _COUNTS * (degrees - _ZERO_DEGREES)
    counts = cv2.resize(
        counts.astype(np.float32), (width, pixels.scene.height),
        interpolation=cv2.INTER_AREA)
    # soft optics, drifting offset, uneven columns, pixel noise
    seen = cv2.GaussianBlur(counts, (0, 0), .7) + rng.normal(0, 60.)
    seen = seen + rng.normal(0, 5., (1, width))
    seen = seen + rng.normal(0, 10., seen.shape)
    result = np.rint(np.clip(seen, 20800, 27000)).astype(np.uint16)
    first, last = valid_columns(width)
    result[:, :first] = 0
    result[:, last:] = 0
    return result


def valid_columns(width: int) -> Tuple[int, int]:
    """First valid infrared column, and the one after the last."""
    return (round(_FIRST_COLUMN * width / _FRAME_WIDTH),
            round(_LAST_COLUMN * width / _FRAME_WIDTH))
