# SPDX-License-Identifier: Apache-2.0
"""Arithmetic on (H, W, 3) float32 images.

NumPy broadcasts over a last axis of three values slowly; OpenCV does not.
"""
from __future__ import annotations

import cv2
import numpy as np

Color = tuple[float, float, float]


def tinted(image: np.ndarray, color: Color) -> np.ndarray:
    """Multiply every pixel by a colour."""
    return cv2.multiply(image, (*color, 0.))


def shaded(image: np.ndarray, shade: np.ndarray) -> np.ndarray:
    """Multiply all channels by an (H, W) map."""
    return image * cv2.merge([shade] * 3)


def mixed(image: np.ndarray, color: Color, share: np.ndarray) -> np.ndarray:
    """Replace the (H, W) ``share`` of an image by a colour."""
    scalar = (*color, 0.)
    return cv2.add(shaded(cv2.subtract(image, scalar), 1 - share), scalar)


def lit(color: np.ndarray, shade: np.ndarray, light: Color) -> np.ndarray:
    """A surface under light of the strength ``shade`` and a colour."""
    return shaded(tinted(color, light), shade)


def fraction(values: np.ndarray) -> np.ndarray:
    """What is left of whole numbers; much faster than ``values % 1``."""
    return values - np.floor(values)
