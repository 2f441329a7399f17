# SPDX-License-Identifier: Apache-2.0
"""mmseg's prediction, with labels made straight from a head's own grid."""
from __future__ import annotations

import contextlib
import sys
from itertools import product
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

import torch
from mmengine.structures import PixelData
from torch import Tensor
from torch.nn import functional as F

from mmseg.models import EncoderDecoder
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.structures import SegDataSample

# Shape legend: B images, C classes, h x w grid of the logits, H x W image

#: Label of all pixels of an image that gets no prediction.
NO_LABEL = 255
# Resized logits that are in memory at a time. Smaller strips, which would
# stay in the caches, measured slower than what they save.
_STRIP_VALUES = 1 << 23
# Pixels per forward on a CPU: features of more than a 512x512 image leave the
# caches, and a batch of them takes longer than its images one by one.
_CPU_PIXELS = 1 << 18
_TEST_FIELDS: Dict[Any, Set[str]] = dict(
    whole=set(), slide={'crop_size', 'stride'})
_DTYPES = ('float32', 'bfloat16', 'float16')
# Axes of (C, H, W) logits that mmcv's ``RandomFlip`` turned around.
_FLIPPED_AXES = dict(horizontal=(2, ), vertical=(1, ), diagonal=(1, 2))


class CoarseEncoderDecoder(EncoderDecoder):
    """mmseg's ``EncoderDecoder`` without a full-size map of every class.

    Stock mmseg resizes logits to the size of the input, then to that of the
    image, and compares classes there, which takes as long as a small
    network. Here the last resize goes straight to labels, strip by strip:
    the same labels up to ties, as integers also of a head of one output.

    Args:
        *args, **kwargs: As in mmseg's ``EncoderDecoder``.
        keep_logits (bool): Whether predictions carry ``seg_logits``, a
            full-size float map per class; ``SegTTAModel`` needs them.
            Defaults to False.
        predict_dtype (str): 'float32', or 'bfloat16' or 'float16' to predict
            under autocast. Defaults to 'float32'.

    Raises:
        ValueError: If ``predict_dtype`` or the mode of ``test_cfg`` is
            unknown, or the mode lacks a size.
    """

    def __init__(self,
                 *args: Any,
                 keep_logits: bool = False,
                 predict_dtype: str = 'float32',
                 **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        test_cfg = dict(self.test_cfg or dict(mode='whole'))
        needed = _TEST_FIELDS.get(test_cfg.get('mode'))
        if needed is None or needed - set(test_cfg):
            raise ValueError(
                "model.test_cfg must be dict(mode='whole') or dict("
                "mode='slide', crop_size=(height, width), stride=(height, "
                f'width)), got {test_cfg}')
        if predict_dtype not in _DTYPES:
            raise ValueError(f'model.predict_dtype must be one of {_DTYPES}, '
                             f'got {predict_dtype!r}')
        self.keep_logits = keep_logits
        self.predict_dtype: torch.dtype = getattr(torch, predict_dtype)

    def predict(
        self,
        inputs: Tensor,
        data_samples: Optional[List[SegDataSample]] = None
    ) -> List[SegDataSample]:
        """As mmseg's; ``seg_logits`` only if the model keeps them."""
        return super().predict(inputs, data_samples or blank_samples(inputs))

    def inference(self, inputs: Tensor,
                  batch_img_metas: List[Dict[str, Any]]) -> Tensor:
        """Logits in the precision of predictions.

        Returns:
            Tensor: (B, C, h, w) float32; in mode 'slide', and of heads with
            a ``predict`` of their own, h x w is the size of the input.
        """
        # not `enabled=False`, which would undo a test loop's own autocast
        lowered: Any = contextlib.nullcontext()
        if self.predict_dtype is not torch.float32:
            lowered = torch.autocast(self.device.type, self.predict_dtype)
        with lowered:
            return super().inference(inputs, batch_img_metas).float()

    def whole_inference(self, inputs: Tensor,
                        batch_img_metas: List[Dict[str, Any]]) -> Tensor:
        """mmseg's, without the resize at the end of a plain head."""
        kind = type(self.decode_head)
        if (kind.predict is not BaseDecodeHead.predict
                or kind.predict_by_feat is not BaseDecodeHead.predict_by_feat):
            return super().whole_inference(inputs, batch_img_metas)
        return self.decode_head(self.extract_feat(inputs))

    def postprocess_result(
            self, seg_logits: Tensor,
            data_samples: List[SegDataSample]) -> List[SegDataSample]:
        """Write predictions in the original size, of (B, C, h, w) logits."""
        for logits, sample in zip(seg_logits, data_samples):
            size = tuple(sample.ori_shape[:2])
            logits = self._as_loaded(logits, sample.metainfo, size)
            if len(logits) == 1 or self.keep_logits:
                logits = resize_logits(logits, size, self.align_corners)
            if len(logits) == 1:
                logits = logits.sigmoid()
                labels = (logits[0] > self.decode_head.threshold).long()
            else:
                labels = label_map(logits, size, self.align_corners)
            sample.set_data(dict(pred_sem_seg=PixelData(data=labels[None])))
            if self.keep_logits:
                sample.set_data(dict(seg_logits=PixelData(data=logits)))
        return data_samples

    def _as_loaded(self, logits: Tensor, meta: Dict[str, Any],
                   size: Tuple[int, ...]) -> Tensor:
        """Logits of an image before it was padded or flipped."""
        height, width = input_size(meta)
        padding: Sequence[int] = meta.get('img_padding_size',
                                          meta.get('padding_size')) or ()
        flip = meta['flip_direction'] if meta.get('flip') else None
        if any(padding) or flip or size != (height, width):
            logits = resize_logits(logits, (height, width), self.align_corners)
        if any(padding):
            left, right, top, bottom = padding
            logits = logits[:, top:height - bottom, left:width - right]
        return logits.flip(_FLIPPED_AXES[flip]) if flip else logits

    def slide_inference(self, inputs: Tensor,
                        batch_img_metas: List[Dict[str, Any]]) -> Tensor:
        """mmseg's, which pads each window's logits to the whole input."""
        size = inputs.shape[2:]
        total: Any = None
        count = inputs.new_zeros(size)
        crop, stride = self.test_cfg.crop_size, self.test_cfg.stride
        for rows, columns in product(*map(_windows, size, crop, stride)):
            window = inputs[:, :, rows, columns]
            batch_img_metas[0]['img_shape'] = window.shape[2:]
            logits = self.encode_decode(window, batch_img_metas)
            if total is None:
                # a method may decode an image in several ways
                total = inputs.new_zeros(*logits.shape[:2], *size)
            total[:, :, rows, columns] += logits
            count[rows, columns] += 1
        return total.div_(count)

    def images_per_forward(self, sample: SegDataSample) -> int:
        """Images like this one that are best predicted together."""
        height, width = input_size(sample.metainfo)
        if self.device.type != 'cpu':
            return sys.maxsize
        return max(1, _CPU_PIXELS // (height * width))

    @property
    def device(self) -> torch.device:
        """torch.device: Where the backbone's weights lie."""
        return next(self.backbone.parameters()).device


def _windows(side: int, crop: int, stride: int) -> List[slice]:
    """Windows along a side; the last one ends with it."""
    count = max(side - crop + stride - 1, 0) // stride + 1
    stops = [min(k * stride + crop, side) for k in range(count)]
    return [slice(max(stop - crop, 0), stop) for stop in stops]


def blank_samples(inputs: Tensor) -> List[SegDataSample]:
    """Data samples of (B, C, H, W) images that were given without any."""
    size = tuple(inputs.shape[2:])
    meta = dict(ori_shape=size, img_shape=size, pad_shape=size)
    return [SegDataSample(metainfo=meta) for _ in inputs]


def input_size(meta: Mapping[str, Any]) -> Tuple[int, int]:
    """Height and width of an image as the network gets it, padded."""
    height, width = meta.get('pad_shape', meta['img_shape'])[:2]
    return height, width


def abstain(sample: SegDataSample, device: torch.device) -> None:
    """Give an image a label map that names no class."""
    size = (1, *sample.ori_shape[:2])
    labels = torch.full(size, NO_LABEL, device=device)
    sample.set_data(dict(pred_sem_seg=PixelData(data=labels)))


def label_map(logits: Tensor, size: Sequence[int],
              align_corners: bool) -> Tensor:
    """(H, W) class with the largest of (C, h, w) logits, after resizing.

    ``max`` stands for ``argmax``, which is several times slower on CPUs;
    both take the first of equal classes.
    """
    # class by class, the layout that resizing and max are fast in
    logits = logits.contiguous()
    height, width = size
    rows = max(1, _STRIP_VALUES // (len(logits) * width))
    if rows >= height or logits.shape[1:] == (height, width):
        return resize_logits(logits, size, align_corners).max(dim=0).indices
    # the two rows that each new row lies between, and the lower one's share
    old, new = logits.shape[1], torch.arange(height, device=logits.device)
    if align_corners:
        at = new * ((old - 1) / max(1, height - 1))
    else:
        at = ((new + 0.5) * (old / height) - 0.5).clamp_min(0)
    above = at.long().clamp_max(old - 1)
    below, share = (above + 1).clamp_max(old - 1), at - above
    labels = logits.new_empty((height, width), dtype=torch.long)
    for start in range(0, height, rows):
        strip = slice(start, min(start + rows, height))
        blended = torch.lerp(logits[:, above[strip]], logits[:, below[strip]],
                             share[strip, None])
        labels[strip] = resize_logits(blended, (blended.shape[1], width),
                                      align_corners).max(dim=0).indices
    return labels


def resize_logits(logits: Tensor, size: Sequence[int],
                  align_corners: bool) -> Tensor:
    """(C, h, w) logits on another grid, bilinear; as they are if equal."""
    if logits.shape[1:] == tuple(size):
        return logits
    return F.interpolate(
        logits[None],
        tuple(size),
        mode='bilinear',
        align_corners=align_corners)[0]
