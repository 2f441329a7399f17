# SPDX-License-Identifier: Apache-2.0
"""From logits to mmseg's predicted data samples."""
from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from mmengine.structures import PixelData
from torch import Tensor

from mmseg.structures import SegDataSample
from .label_maps import label_map, resize_logits

#: In the label map of an image that gets no prediction.
NO_LABEL = 255
# Axes of (C, H, W) logits that mmcv's ``RandomFlip`` turned around.
_FLIPS = dict(horizontal=(2, ), vertical=(1, ), diagonal=(1, 2))


class PredictedSamples:
    """Writes label maps of a batch into its data samples.

    The same steps as mmseg's ``postprocess_result`` after its heads' resize:
    to the input's size, padding cut off, flip undone, to the original size;
    the last resize goes straight to labels.

    Args:
        inputs (Tensor): (B, 3, H, W), for its size.
        data_samples (list[SegDataSample], optional): Of the B images; new
            ones are made without.
        keep_logits (bool): Whether to write ``seg_logits`` too, which takes
            a full-size float map per class.
    """

    def __init__(self, inputs: Tensor,
                 data_samples: Optional[List[SegDataSample]],
                 keep_logits: bool) -> None:
        height, width = inputs.shape[2:]
        self._input_size: Tuple[int, int] = (height, width)
        self.samples: List[SegDataSample] = data_samples or [
            SegDataSample() for _ in inputs
        ]
        self._device = inputs.device
        self._as_input = data_samples is None
        self._keep_logits = keep_logits

    def metas(self) -> List[Dict[str, Any]]:
        """Metainfo of the images, as heads want it."""
        if not self._as_input:
            return [sample.metainfo for sample in self.samples]
        shape = self._input_size
        return [
            dict(
                ori_shape=shape,
                img_shape=shape,
                pad_shape=shape,
                padding_size=[0, 0, 0, 0]) for _ in self.samples
        ]

    def write(self, indices: Sequence[int], logits: Tensor, head: Any) -> None:
        """Predict images.

        Args:
            indices (Sequence[int]): Their n positions in the batch.
            logits (Tensor): (n, C, h, w) float32.
            head (BaseDecodeHead): Says how to resize, and where a single
                output becomes foreground.
        """
        for index, own in zip(indices, logits):
            sample = self.samples[index]
            size, own = self._unpadded(sample, own, head.align_corners)
            if len(own) == 1 or self._keep_logits:
                own = resize_logits(own[None], size, head.align_corners)[0]
            if len(own) == 1:
                own = own.sigmoid()
                labels = (own[0] > head.threshold).to(own)
            else:
                labels = label_map(own, size, head.align_corners)
            fields = dict(pred_sem_seg=PixelData(data=labels[None]))
            if self._keep_logits:
                fields['seg_logits'] = PixelData(data=own)
            sample.set_data(fields)

    def abstain(self, indices: Sequence[int]) -> None:
        """Give images a label map that names no class, 255 throughout.

        Args:
            indices (Sequence[int]): Their positions in the batch.
        """
        for index in indices:
            sample = self.samples[index]
            size = self._input_size
            if not self._as_input:
                size = tuple(sample.metainfo['ori_shape'][:2])
            labels = torch.full((1, *size), NO_LABEL, device=self._device)
            sample.set_data(dict(pred_sem_seg=PixelData(data=labels)))

    def _unpadded(self, sample: SegDataSample, logits: Tensor,
                  align_corners: bool) -> Tuple[Tuple[int, int], Tensor]:
        """Size of the label map, and logits of what it shows."""
        if self._as_input:
            return self._input_size, logits
        meta = sample.metainfo
        size = tuple(meta['ori_shape'][:2])
        padding = meta.get('img_padding_size', meta.get('padding_size'))
        cut = any(padding or ())
        if not cut and not meta.get('flip') and size == self._input_size:
            return size, logits
        logits = resize_logits(logits[None], self._input_size,
                               align_corners)[0]
        if cut:
            left, right, top, bottom = padding
            height, width = self._input_size
            logits = logits[:, top:height - bottom, left:width - right]
        if meta.get('flip'):
            logits = logits.flip(_flipped_axes(meta.get('flip_direction')))
        return size, logits


def _flipped_axes(direction: Any) -> Tuple[int, ...]:
    if direction not in _FLIPS:
        raise ValueError(f'flip_direction must be one of {sorted(_FLIPS)}, '
                         f'got {direction!r}')
    return _FLIPS[direction]
