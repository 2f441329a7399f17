# SPDX-License-Identifier: Apache-2.0
"""Copies of images, as another day or another camera might have given them."""
from __future__ import annotations

import math
import zlib
from typing import Any, Dict, List

import torch
from torch import Tensor
from torch.nn import functional as F

from .small_copies import small_copy

# Half-widths of log-uniform draws, and bounds of uniform ones.
_GAIN = 0.3
_CONTRAST = 0.2
_SHARPNESS = (0.5, 1.0)
_NOISE = (0.0, 0.1)
_MIN_SIDE = 8


def disturbed_image(image: Tensor, number: int = 0) -> Tensor:
    """The image in other light, softer, and noisier.

    Every value is scaled by a gain within a factor of ``exp(0.3)``, the
    contrast about the mean within ``exp(0.2)``; the image is averaged down
    to between half its size and all of it, and enlarged again; and Gaussian
    noise is added, of up to a tenth of the standard deviation of its values.
    Of an image, a number always draws the same: neither the order of images
    nor the random state matters.

    Args:
        image (Tensor): (C, H, W) before normalisation, of any channels,
            depth and type.
        number (int): Which copy. Defaults to 0.

    Returns:
        Tensor: (C, H, W), of the same type; integers are rounded and kept
        within their range.
    """
    draw = torch.Generator().manual_seed(
        zlib.crc32(image.cpu().numpy().tobytes()) + number)
    gain, contrast, sharpness, noise = torch.rand(4, generator=draw).tolist()
    x = image.float()
    mean = x.mean()
    x = mean + (x - mean) * math.exp(_CONTRAST * (2 * contrast - 1))
    x = x * math.exp(_GAIN * (2 * gain - 1))
    x = _softened(x,
                  _SHARPNESS[0] + sharpness * (_SHARPNESS[1] - _SHARPNESS[0]))
    grain = torch.randn(x.shape, generator=draw).to(x.device)
    x = x + grain * x.std() * (_NOISE[0] + noise * (_NOISE[1] - _NOISE[0]))
    if image.is_floating_point():
        return x.to(image.dtype)
    limits = torch.iinfo(image.dtype)
    return x.round().clamp(limits.min, limits.max).to(image.dtype)


def looks_at(batch: Dict[str, Any], count: int) -> List[Dict[str, Any]]:
    """A batch, and the same with disturbed copies of its images.

    Args:
        batch (dict): ``inputs`` are the images, before normalisation.
        count (int): Batches that are wanted, this one included.
    """
    copies = [
        dict(
            batch,
            inputs=[disturbed_image(image, n) for image in batch['inputs']])
        for n in range(count - 1)
    ]
    return [batch, *copies]


def _softened(x: Tensor, scale: float) -> Tensor:
    """Less sharp: detail finer than ``1 / scale`` pixels is gone."""
    small = small_copy(x[None], scale, _MIN_SIDE)
    return F.interpolate(small, size=x.shape[1:], mode='bilinear')[0]
