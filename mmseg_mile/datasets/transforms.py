# SPDX-License-Identifier: Apache-2.0
"""Cut a fixed range of columns out of image and ground truth."""
from __future__ import annotations

from typing import Optional

import cv2
import mmengine.fileio as fileio
import numpy as np
from mmcv.transforms import BaseTransform

from mmseg.registry import TRANSFORMS


@TRANSFORMS.register_module()
class CropColumns(BaseTransform):
    """Keep columns ``[left, right)`` of the frame as it was recorded.

    For aligned infrared images, whose outer columns are empty: HeatNet's are
    valid in [300, 1710). ``ori_shape`` shrinks too, so that predictions are
    made for, and scored on, the cropped frame.

    It crops what is loaded and not yet cropped. Where the ground truth is read
    after resizing, as mmseg's test pipelines do, name the transform twice::

        LoadSingleChannelImage, CropColumns, Resize,    # crops the image
        LoadAnnotations, CropColumns, PackSegInputs     # crops the mask

    Modified Keys:

    - img
    - img_shape
    - ori_shape
    - gt_seg_map and the other ``seg_fields``

    Args:
        left (int): First column that is kept.
        right (int): First column that is not.
        full_width (int, optional): Width of the frames that ``left`` and
            ``right`` are meant for; in smaller copies of them the columns are
            scaled along. Defaults to None, which means as they stand.

    Raises:
        ValueError: If the range is empty, the image is narrower, or it was
            resized or cropped before.
    """

    def __init__(self,
                 left: int,
                 right: int,
                 full_width: Optional[int] = None) -> None:
        if not 0 <= left < right <= (full_width or right):
            raise ValueError(
                'CropColumns: columns must satisfy 0 <= left < right <= '
                f'full_width, got left={left}, right={right}, '
                f'full_width={full_width}.')
        self.left = left
        self.right = right
        self.full_width = full_width

    def transform(self, results: dict) -> dict:
        """Crop the image and the ground truth, each once."""
        done = results.setdefault('cropped_columns', {})
        self.check_same(
            results.setdefault('asked_columns', (self.left, self.right)))
        for key in ['img', *results.get('seg_fields', [])]:
            if key not in results or key in done:
                continue
            # The only frame whose columns are those of the file.
            if key == 'img' and results['img'].shape[:2] != tuple(
                    results['ori_shape'][:2]):
                raise ValueError(
                    f'CropColumns: the image is {results["img"].shape[:2]} '
                    f'but was loaded as {results["ori_shape"]}; put '
                    'CropColumns right after loading the image.')
            left, right = self.columns(results[key], key, results)
            results[key] = np.ascontiguousarray(results[key][:, left:right])
            done[key] = (left, right)
            if key == 'img':
                results['img_shape'] = results['img'].shape[:2]
                results['ori_shape'] = results['img'].shape[:2]
        return results

    def check_same(self, columns: tuple[int, int]) -> None:
        """Refuse a second crop to other columns."""
        if columns != (self.left, self.right):
            raise ValueError(
                f'CropColumns: already cropped to columns {list(columns)}, '
                f'now asked for {[self.left, self.right]}; use one range.')

    def columns(self, array: np.ndarray, key: str,
                results: dict) -> tuple[int, int]:
        """The columns in pixels of an H x W (x C) array."""
        width = array.shape[1]
        scale = width / self.full_width if self.full_width else 1
        left, right = round(self.left * scale), round(self.right * scale)
        if not left < right <= width:
            raise ValueError(
                f'CropColumns: {key} of {results.get("img_path")!r} has '
                f'{width} columns, too few for [{left}, {right}).')
        return left, right

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(left={self.left}, '
                f'right={self.right}, full_width={self.full_width})')


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
        ValueError: If ``low >= high``, or a file is no image, a colour one,
            or one whose values are all below ``low`` or all above ``high``.
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
        if values.max() < self.low or values.min() > self.high:
            raise ValueError(
                f'image {path!r} holds {values.min()} to {values.max()} '
                f'({values.dtype}), all outside of low={self.low} to high='
                f'{self.high}: it would be constant. Take the recording of '
                'the same depth and unit, or set low and high of '
                'LoadSingleChannelImage to those of this one.')
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
