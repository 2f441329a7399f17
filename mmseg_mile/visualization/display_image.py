# SPDX-License-Identifier: Apache-2.0
"""Read any image of a dataset as eight-bit RGB for showing."""
from __future__ import annotations

import os

import cv2
import mmengine.fileio as fileio
import numpy as np

from .figure_file import PathLike

# Values between these percentiles fill the eight bits of a deeper image.
STRETCH = (1, 99)


def read_image_for_display(path: PathLike) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a colour, grey or deeper image.

    Eight-bit images are shown as they are. Others, such as 16-bit thermal
    or disparity, are stretched between two percentiles: fit for looking
    at, not for measuring.

    Raises:
        ValueError: If the file is no image that OpenCV can decode.
    """
    name = os.fspath(path)
    data = np.frombuffer(fileio.get(name), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR
                         | cv2.IMREAD_ANYDEPTH) if len(data) else None
    if image is None:
        raise ValueError(f'cannot decode image {name!r} ({len(data)} bytes); '
                         'copy or download the file again.')
    if image.dtype != np.uint8:
        image = _stretch(image)
    return np.ascontiguousarray(image[:, :, ::-1])


def _stretch(image: np.ndarray) -> np.ndarray:
    values = image.astype(np.float32)
    # sensors write zero where they measured nothing, such as at the borders
    # of an aligned frame; that would take most of the range
    known = values[np.isfinite(values) & (values != 0)]
    low, high = np.percentile(known, STRETCH) if known.size else (0, 0)
    scaled = (values - low) * (255 / max(high - low, 1e-6))
    scaled = np.nan_to_num(scaled, posinf=255, neginf=0)
    return np.clip(scaled, 0, 255).round().astype(np.uint8)
