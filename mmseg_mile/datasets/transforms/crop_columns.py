# SPDX-License-Identifier: Apache-2.0
"""Cut a fixed range of columns out of image and ground truth."""
from __future__ import annotations

from typing import Optional

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
