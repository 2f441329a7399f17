# SPDX-License-Identifier: Apache-2.0
"""One numbered scene, its picture, and files that are whole or absent."""
from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from .raster import Buffers, paint_buffers
from .rendering import render
from .scene import sample_scene
from .sketch import Sketch
from .street_styles import StreetStyle


class Snapshot(NamedTuple):
    """A scene, its buffers, its BGR picture, and a generator for the rest."""
    sketch: Sketch
    buffers: Buffers
    image: np.ndarray
    rng: np.random.Generator


def draw_scene(seed: int, key: str, size: tuple[int, int],
               style: StreetStyle) -> tuple[Sketch, np.random.Generator]:
    """Sample the scene of :func:`take` without rendering it."""
    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
    return sample_scene(rng, size, style), rng


def take(seed: int, key: str, size: tuple[int, int], style: StreetStyle,
         condition: str) -> Snapshot:
    """Sample and render a scene.

    Args:
        seed (int): Seed of the whole data.
        key (str): Name of the frame. It alone decides which scene this is,
            so that frames can be made in any order and by any process.
        size (tuple[int, int]): Image height and width.
        style (StreetStyle): Kind of street.
        condition (str): Light and weather, see ``rendering.CONDITIONS``.

    Returns:
        Snapshot: The scene and its picture.
    """
    sketch, rng = draw_scene(seed, key, size, style)
    buffers = paint_buffers(sketch)
    return Snapshot(sketch, buffers, render(buffers, condition, rng), rng)


def save_image(path: Path, image: np.ndarray) -> None:
    """Write a png or jpg, by the path's suffix.

    Raises:
        ValueError: If OpenCV cannot encode the image.
    """
    options = [cv2.IMWRITE_JPEG_QUALITY, 92] if path.suffix == '.jpg' else []
    done, data = cv2.imencode(path.suffix, image, options)
    if not done:
        raise ValueError(f'cannot encode {path} as {path.suffix!r}; use .png '
                         'or .jpg')
    save_bytes(path, data.tobytes())


def save_json(path: Path, content: dict) -> None:
    """Write a json file."""
    save_bytes(path, json.dumps(content).encode())


def save_bytes(path: Path, data: bytes) -> None:
    """Write a file in one step, so that none is ever half there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.{os.getpid()}.partial')
    partial.write_bytes(data)
    os.replace(partial, path)
