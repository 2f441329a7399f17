# SPDX-License-Identifier: Apache-2.0
"""Read thermal and other one-channel images of any depth."""
from __future__ import annotations

from typing import Optional

import cv2
import mmengine.fileio as fileio
import numpy as np
from mmcv.transforms import BaseTransform

from mmseg.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadSingleChannelImage(BaseTransform):
    """``255 * (clip(x, low, high) - low) / (high - low)``, float32.

    ``x`` are the values in the file, 8 or 16 bit, which mmcv's loader would
    reduce to 8 bit. Fixed bounds keep a temperature at one grey value in every
    image. HeatNet's infrared counts: low=21800, high=25000.

    Required Keys:

    - img_path

    Added Keys:

    - img
    - img_shape
    - ori_shape

    Args:
        low (float): Value that becomes 0.
        high (float): Value that becomes 255.
        num_channels (int): Copies of the channel, as many as the network
            expects. Defaults to 3.
        backend_args (dict, optional): File backend of mmengine. Defaults to
            None.

    Raises:
        ValueError: If ``low >= high``, or a file is no image or a colour one.
    """

    def __init__(self,
                 low: float,
                 high: float,
                 num_channels: int = 3,
                 backend_args: Optional[dict] = None) -> None:
        if not low < high:
            raise ValueError(
                'LoadSingleChannelImage: low must be below high, got '
                f'low={low}, high={high}.')
        if num_channels < 1:
            raise ValueError('LoadSingleChannelImage: num_channels must be '
                             f'at least 1, got {num_channels}.')
        self.low = low
        self.high = high
        self.num_channels = num_channels
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        """Read ``results['img_path']``."""
        path = results['img_path']
        values = decode_single_channel(
            fileio.get(path, backend_args=self.backend_args), path)
        scale = 255 / (self.high - self.low)
        img = (np.clip(values.astype(np.float32), self.low, self.high) -
               np.float32(self.low)) * np.float32(scale)
        results['img'] = np.repeat(img[:, :, None], self.num_channels, axis=2)
        results['img_shape'] = img.shape
        results['ori_shape'] = img.shape
        return results

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(low={self.low}, high={self.high}, '
                f'num_channels={self.num_channels})')


def decode_single_channel(data: bytes, path: str) -> np.ndarray:
    """Decode an image file to its one channel, of the file's own depth.

    Raises:
        ValueError: If ``data`` is no image, or its channels differ.
    """
    # cv2 refuses an empty buffer with an error that names no file.
    values = cv2.imdecode(np.frombuffer(data, np.uint8),
                          cv2.IMREAD_UNCHANGED) if data else None
    if values is None:
        raise ValueError(
            f'cannot decode image {path!r} ({len(data)} bytes); copy or '
            'download the file again.')
    if values.ndim == 3:
        colours = values[:, :, :3]
        if (colours != colours[:, :, :1]).any():
            raise ValueError(
                f'image {path!r} has {values.shape[2]} different channels, '
                'but LoadSingleChannelImage reads grey images; use '
                'LoadImageFromFile for colour.')
        values = values[:, :, 0]
    return values
