# SPDX-License-Identifier: Apache-2.0
"""Fog, rain and snow over a rendered scene."""
from __future__ import annotations

import cv2
import numpy as np

from .pixels import Color, mixed, shaded
from .raster import Buffers
from .texture import noise, tyre_tracks


def add_fog(image: np.ndarray, depth: np.ndarray, density: float,
            airlight: Color) -> np.ndarray:
    """Koschmieder's law ``I = J t + A (1 - t)``, ``t = exp(-density z)``.

    Args:
        image (np.ndarray): Clear image J, (H, W, 3).
        depth (np.ndarray): Distance z in metres, (H, W).
        density (float): Extinction per metre.
        airlight (Color): Colour A of dense fog.

    Returns:
        np.ndarray: Foggy image I.
    """
    return mixed(image, airlight, 1 - cv2.exp(-density * depth))


def wet_road(image: np.ndarray, buffers: Buffers, strength: float,
             rng: np.random.Generator) -> np.ndarray:
    """Mirror what stands above the street in it, smeared downwards."""
    unit = buffers.scale
    horizon = int(round(buffers.sketch.camera.horizon * unit))
    height = buffers.shape[0]
    rows = np.clip(2 * horizon + 6 * unit - np.arange(height), 0, height - 1)
    mirror = cv2.blur(image[rows], (3 * unit, 14 * unit))
    puddle = np.clip(.5 + .5 * noise(rng, buffers.shape, 14 * unit), 0., 1.)
    share = strength * (.65 + .35 * puddle)
    share *= np.where(
        buffers.of('asphalt', 'marking'), 1.,
        np.where(buffers.of('paving', 'curb'), .55, 0.))
    share = np.clip(share, 0., .9).astype(np.float32)
    dry = (1 - np.float32(.25) * (share > 0)) * (1 - share)
    return shaded(image, dry) + shaded(mirror, share)


def add_rain(image: np.ndarray, rng: np.random.Generator,
             unit: int) -> np.ndarray:
    """Streaks in the air and drops on the windscreen."""
    height, width = image.shape[:2]
    streaks = np.zeros((height, width), np.float32)
    lean = rng.uniform(-.25, .25)
    count = int(height * width * rng.uniform(.0010, .0022) / unit**2)
    for _ in range(count):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        length = rng.uniform(3, 9) * unit
        end = int(x + lean * length), int(y + length)
        cv2.line(streaks, (int(x), int(y)), end, rng.uniform(.10, .35), 1)
    image = mixed(image, (.85, ) * 3, streaks)
    blurred = cv2.GaussianBlur(image, (0, 0), 4. * unit)[::-1]
    drops: np.ndarray = np.zeros((height, width), np.float32)
    for _ in range(int(rng.integers(6, 22))):
        center = int(rng.integers(width)), int(rng.integers(height))
        axes = (int(rng.uniform(1, 3.2) * unit),
                int(rng.uniform(1.2, 4.) * unit))
        cv2.ellipse(drops, center, axes, 0, 0, 360, rng.uniform(.4, .8), -1)
    drops = cv2.GaussianBlur(drops, (0, 0), .8 * unit)
    refracted = .6 * blurred + .3 * float(image.mean())
    return image + shaded(refracted - image, drops)


def lay_snow(color: np.ndarray, buffers: Buffers,
             rng: np.random.Generator) -> np.ndarray:
    """Cover what faces upwards; traffic keeps its tracks half clear."""
    unit = buffers.scale
    patches = noise(rng, buffers.shape, 10 * unit)
    patches += .5 * noise(rng, buffers.shape, 3 * unit)
    cover = np.zeros(buffers.shape, np.float32)
    amount = rng.uniform(-.2, .9)
    cover[buffers.of('grass', 'dirt', 'hill')] = .93
    cover[buffers.of('paving', 'curb')] = .80 + .1 * min(amount, 1.)
    road = buffers.of('asphalt', 'marking')
    lying = 1.1 * amount + .4 * patches - .9 * tyre_tracks(buffers.x) + .15
    cover[road] = np.clip(lying, 0., .9)[road]
    leaves = buffers.of('foliage')
    cover[leaves] = np.clip(.38 + .42 * patches[leaves], 0., .9)
    # What is seen edge-on from above: tops of cars, walls and signs.
    top = np.zeros(buffers.shape, bool)
    step = 2 * unit
    top[step:] = buffers.z[:-step] > buffers.z[step:] + 1.5
    capped = top & buffers.of('metal', 'concrete', 'wood', 'sign', 'bark')
    cover[capped] = .85
    # Drifts are not evenly bright.
    cover *= 1 + np.float32(.05) * patches
    return mixed(color, (.86, .88, .92), cover)


def add_flakes(image: np.ndarray, rng: np.random.Generator,
               unit: int) -> np.ndarray:
    """Falling snow: many small flakes, a few large and blurred ones."""
    height, width = image.shape[:2]
    for radius, share, blur in ((.5, .0022, .4), (1.1, .0007, .8),
                                (2.4, .00012, 1.4)):
        layer: np.ndarray = np.zeros((height, width), np.float32)
        for _ in range(
                int(height * width * share / unit**2 * rng.uniform(.3, 1.5))):
            center = int(rng.integers(width)), int(rng.integers(height))
            cv2.circle(layer, center, max(int(radius * unit), 1),
                       rng.uniform(.4, .9), -1)
        layer = cv2.GaussianBlur(layer, (0, 0), blur * unit)
        image = mixed(image, (.95, ) * 3, layer)
    return image
