# SPDX-License-Identifier: Apache-2.0
"""The colour cameras of the data sets, each in its own light."""
from __future__ import annotations

from typing import Callable, NamedTuple

import cv2
import numpy as np

from .lighting import Daylight, bloom, light_by_day, light_by_night
from .pixels import Color, mixed, shaded
from .raster import Buffers
from .texture import textured
from .weather import add_flakes, add_fog, add_rain, lay_snow, wet_road


class Sensor(NamedTuple):
    """What a camera does to the light: gain per channel, contrast, noise."""
    gain: Color
    contrast: float
    saturation: float
    noise: float
    vignette: float


_CITYSCAPES = Sensor((.86, .98, .88), 1.0, .75, .012, .12)
_ACDC = Sensor((.95, 1., 1.02), 1.0, .9, .014, .15)
_BDD = Sensor((.96, 1.0, 1.12), 1.25, 1.15, .018, .25)
_IDD = Sensor((1.04, 1.0, .95), 1.05, 1.05, .016, .10)
_HEATNET = Sensor((1.02, 1.0, .96), 1.15, .85, .016, .08)
# A night exposure is long: noisy, and each camera has its own.
_NIGHT = Sensor((1., .98, .98), 1.0, .9, .030, .15)


def _clear(buffers: Buffers, rng: np.random.Generator) -> np.ndarray:
    bright = rng.uniform(.9, 1.1)
    overcast = rng.random() < .45
    light = Daylight(
        zenith=(.70, .78, .86) if overcast else (.52, .68, .88),
        rim=(.88, .90, .90),
        ambient=(.62 * bright, ) * 3 if overcast else
        (.42 * bright, .46 * bright, .52 * bright),
        sun=(.36 * bright, ) * 3 if overcast else
        (.72 * bright, .68 * bright, .58 * bright),
        sun_side=0 if overcast else int(rng.choice([-1, 1])),
        clouds=.9 if overcast else rng.uniform(0, .6))
    image = light_by_day(textured(buffers, rng), buffers, light, rng)
    return add_fog(image, buffers.z, .0012, (.85, .88, .90))


def _overcast(level: float) -> Daylight:
    return Daylight((level, ) * 3, (level * 1.1, ) * 3, (.55 * level, ) * 3,
                    (.5 * level, ) * 3, 0, .8)


def _fog(buffers: Buffers, rng: np.random.Generator) -> np.ndarray:
    image = light_by_day(textured(buffers, rng), buffers, _overcast(.85), rng)
    level = rng.uniform(.62, .84)
    return add_fog(image, buffers.z, rng.uniform(.018, .050),
                   (level, level * 1.01, level * 1.03))


def _rain(buffers: Buffers, rng: np.random.Generator) -> np.ndarray:
    level = rng.uniform(.60, .86)
    image = light_by_day(
        textured(buffers, rng) * .9, buffers, _overcast(level), rng)
    image = wet_road(image, buffers, rng.uniform(.35, .65), rng)
    image = add_fog(image, buffers.z, rng.uniform(.005, .013),
                    (level * .92, level * .97, level * 1.04))
    return add_rain(image, rng, buffers.scale)


def _snow(buffers: Buffers, rng: np.random.Generator) -> np.ndarray:
    color = lay_snow(textured(buffers, rng), buffers, rng)
    level = rng.uniform(.80, .95)
    image = light_by_day(color, buffers, _overcast(level), rng)
    image = add_fog(image, buffers.z, rng.uniform(.006, .016),
                    (level * .93, level * .95, level))
    return add_flakes(image, rng, buffers.scale)


def _night(buffers: Buffers, rng: np.random.Generator) -> np.ndarray:
    warm = rng.uniform(.35, .75)
    image = light_by_night(
        textured(buffers, rng), buffers, rng.uniform(.03, .08), rng,
        (1., .5 + .45 * warm, warm))
    return bloom(image * rng.uniform(.8, 1.15), buffers, 5., 1.1)


def _american(buffers: Buffers, rng: np.random.Generator) -> np.ndarray:
    """Any hour of the day, seen through a tinted windscreen."""
    hour = rng.choice(['noon', 'grey', 'dusk', 'night'], p=[.42, .2, .26, .12])
    if hour == 'night':
        return _night(buffers, rng)
    color = textured(buffers, rng)
    if hour == 'noon':
        light = Daylight((.22, .45, .85), (.70, .82, .95), (.38, .42, .50),
                         (.95, .90, .76), int(rng.choice([-1, 1])),
                         rng.uniform(0, .7))
    elif hour == 'grey':
        light = _overcast(.85)
    else:
        light = Daylight((.26, .30, .52), (.98, .62, .36), (.32, .29, .36),
                         (.46, .30, .20), int(rng.choice([-1, 1])),
                         rng.uniform(.2, .8))
    image = light_by_day(color, buffers, light, rng)
    if hour == 'dusk':
        glowing = buffers.glow > 0
        image[glowing] += .5 * buffers.glow[glowing][:, None] * color[glowing]
    image = add_fog(image, buffers.z, .0015, light.rim)
    return _windscreen(bloom(image, buffers, 4., .3), rng)


def _windscreen(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Reflection of the dashboard: a milky veil in the lower half."""
    rows = np.linspace(0, 1, image.shape[0], dtype=np.float32)[:, None]
    veil = np.broadcast_to(rng.uniform(0, .14) * rows**2, image.shape[:2])
    return mixed(image, (.75, .80, .86), veil)


def _indian(buffers: Buffers, rng: np.random.Generator) -> np.ndarray:
    dust = rng.uniform(0, 1)
    light = Daylight((.74, .80, .84 - .1 * dust), (.93, .90, .86 - .1 * dust),
                     (.52, .49, .46 - .06 * dust),
                     (.58, .53, .46 - .08 * dust), int(rng.choice([-1, 0, 1])),
                     rng.uniform(.3, .9))
    image = light_by_day(textured(buffers, rng), buffers, light, rng)
    return add_fog(image, buffers.z, rng.uniform(.004, .013),
                   (.88, .83, .77 - .12 * dust))


def _freiburg(buffers: Buffers, rng: np.random.Generator) -> np.ndarray:
    bright = rng.uniform(.85, 1.15)
    light = Daylight((.45, .60, .82), (.82, .86, .88),
                     (.40 * bright, .42 * bright, .46 * bright),
                     (.66 * bright, .62 * bright, .52 * bright),
                     int(rng.choice([-1, 0, 1])), rng.uniform(0, .8))
    return light_by_day(textured(buffers, rng), buffers, light, rng)


CONDITIONS: dict[str, tuple[Callable, Sensor]] = {
    'cityscapes': (_clear, _CITYSCAPES),
    'fog': (_fog, _ACDC),
    'rain': (_rain, _ACDC),
    'snow': (_snow, _ACDC),
    'night': (_night, _NIGHT),
    'bdd100k': (_american, _BDD),
    'idd': (_indian, _IDD),
    'heatnet_day': (_freiburg, _HEATNET),
    'heatnet_night': (_night, _NIGHT),
}


def render(buffers: Buffers, condition: str,
           rng: np.random.Generator) -> np.ndarray:
    """Photograph a scene.

    Args:
        buffers (Buffers): The scene.
        condition (str): Key of ``CONDITIONS``.
        rng (np.random.Generator): Source of light, weather and noise.

    Returns:
        np.ndarray: uint8 BGR image of the camera's size.
    """
    light, sensor = CONDITIONS[condition]
    camera = buffers.sketch.camera
    image = cv2.resize(
        np.clip(light(buffers, rng), 0., 1.5), (camera.width, camera.height),
        interpolation=cv2.INTER_AREA)
    return _expose(image, sensor, rng)


def _expose(image: np.ndarray, sensor: Sensor,
            rng: np.random.Generator) -> np.ndarray:
    # Gain per channel, then saturation about the mean of the channels.
    mix = np.full((3, 3), (1 - sensor.saturation) / 3)
    mix += sensor.saturation * np.eye(3)
    image = cv2.transform(image, mix @ np.diag(sensor.gain))
    pivot = float(image.mean())
    image = pivot + sensor.contrast * (image - pivot)
    height, width = image.shape[:2]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    image = shaded(image, 1 - sensor.vignette / 2 * (x * x + y * y))
    image += sensor.noise * rng.standard_normal(image.shape, np.float32)
    image = np.rint(np.clip(image, 0., 1.) * 255).astype(np.uint8)
    return cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
