# SPDX-License-Identifier: Apache-2.0
"""From logits on a coarse grid to a label map of the image's size."""
from __future__ import annotations

from typing import (Any, Callable, Dict, Iterator, List, NamedTuple, Optional,
                    Sequence, Tuple)

import torch
from mmengine.structures import PixelData
from torch import Tensor, nn
from torch.nn import functional as F

from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.structures import SegDataSample

# Shape legend: C classes, h x w grid of the logits, H x W image

# Resized logits that are in memory at a time. Smaller strips, which would
# stay in the caches, measured slower than what they save.
_STRIP_VALUES = 1 << 23


def label_map(logits: Tensor, size: Tuple[int, int],
              align_corners: bool) -> Tensor:
    """Class with the largest logit after bilinear resizing.

    Large images are resized strip by strip, so that no full-size copy of
    every class exists at once. ``max`` stands for ``argmax``, which is
    several times slower on CPUs; both take the first of equal classes.

    Args:
        logits (Tensor): (C, h, w) float32.
        size (tuple[int, int]): H, W.
        align_corners (bool): As in ``F.interpolate``.

    Returns:
        Tensor: (H, W) int64.
    """
    # class by class, the layout that resizing and max are fast in
    logits = logits.contiguous()
    height, width = size
    rows = max(1, _STRIP_VALUES // (len(logits) * width))
    if rows >= height or logits.shape[1:] == (height, width):
        return _largest(resize_logits(logits[None], size, align_corners)[0])
    above, below, share = _source_rows(logits.shape[1], height, align_corners,
                                       logits.device)
    labels = logits.new_empty(size, dtype=torch.long)
    for start in range(0, height, rows):
        strip = slice(start, min(start + rows, height))
        blended = torch.lerp(logits[:, above[strip]], logits[:, below[strip]],
                             share[strip, None])
        labels[strip] = _largest(
            resize_logits(blended[None], (len(above[strip]), width),
                          align_corners)[0])
    return labels


def resize_logits(logits: Tensor, size: Sequence[int],
                  align_corners: bool) -> Tensor:
    """(n, C, h, w) logits on another grid, bilinear; as they are if equal."""
    if logits.shape[2:] == tuple(size):
        return logits
    return F.interpolate(
        logits, tuple(size), mode='bilinear', align_corners=align_corners)


def _largest(logits: Tensor) -> Tensor:
    return logits.max(dim=0).indices


def _source_rows(height: int, new_height: int, align_corners: bool,
                 device: torch.device) -> Tuple[Tensor, Tensor, Tensor]:
    """The two rows that each new row lies between, and the lower's share."""
    new = torch.arange(new_height, dtype=torch.float32, device=device)
    if align_corners:
        at = new * ((height - 1) / max(1, new_height - 1))
    else:
        at = ((new + 0.5) * (height / new_height) - 0.5).clamp_min(0)
    above = at.long().clamp_max(height - 1)
    return above, (above + 1).clamp_max(height - 1), at - above


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


# Shape legend: B images, C classes, h x w grid of the logits, H x W input


class Decoded(NamedTuple):
    """What a decoder made of its images.

    Args:
        logits (Tensor): (n, C, h, w) float32.
        head (nn.Module): Says how to resize them; its values may be another
            expert's by now.
    """
    logits: Tensor
    head: Any


class Decoder(NamedTuple):
    """A head and the images that it decodes.

    Args:
        head (Callable): Gives the head, ready to predict. Heads of several
            experts may share a module, so it is asked for right before use.
        indices (Sequence[int]): Positions in the batch.
    """
    head: Callable[[], nn.Module]
    indices: Sequence[int]


def decode_batch(model: Any, inputs: Tensor, metas: List[Dict[str, Any]],
                 decoders: Sequence[Decoder]) -> List[Decoded]:
    """Logits of a batch in mmseg's 'whole' or 'slide' mode.

    Args:
        model (EncoderDecoder): Gives features and ``test_cfg``.
        inputs (Tensor): (B, 3, H, W).
        metas (list[dict]): Metainfo of the B images.
        decoders (Sequence[Decoder]): Together they decode every image.

    Returns:
        list[Decoded]: Per decoder; on the head's own grid in whole mode, on
        the input's in slide mode.

    Raises:
        ValueError: If ``test_cfg.mode`` is unknown.
    """
    mode = model.test_cfg.get('mode', 'whole')
    if mode == 'slide':
        return _slide(model, inputs, metas, decoders)
    if mode != 'whole':
        raise ValueError("model.test_cfg.mode must be 'whole' or 'slide', "
                         f'got {mode!r}')
    return _decode(model, inputs, metas, decoders)


def _decode(model: Any, inputs: Tensor, metas: List[Dict[str, Any]],
            decoders: Sequence[Decoder]) -> List[Decoded]:
    features = model.extract_feat(inputs)
    outputs = []
    for decoder in decoders:
        head: Any = decoder.head()
        own = _pick(features, decoder.indices, len(inputs))
        if _is_plain(head):
            decoded = head(own)
        else:
            chosen = [metas[i] for i in decoder.indices]
            decoded = head.predict(own, chosen, model.test_cfg)
        outputs.append(Decoded(decoded.float(), head))
    return outputs


def _pick(features: Any, indices: Sequence[int], count: int) -> Any:
    if list(indices) == list(range(count)):
        return features
    if isinstance(features, Tensor):
        return features[indices]
    return [level[indices] for level in features]


def _is_plain(head: nn.Module) -> bool:
    """Whether the head's prediction is its forward pass, resized."""
    kind: Any = type(head)
    return (issubclass(kind, BaseDecodeHead)
            and kind.predict is BaseDecodeHead.predict
            and kind.predict_by_feat is BaseDecodeHead.predict_by_feat)


def _slide(model: Any, inputs: Tensor, metas: List[Dict[str, Any]],
           decoders: Sequence[Decoder]) -> List[Decoded]:
    """Mean of the logits of overlapping windows."""
    height, width = inputs.shape[2:]
    sums: List[Decoded] = []
    count = inputs.new_zeros(height, width)
    for rows, columns in _windows(height, width, model.test_cfg.crop_size,
                                  model.test_cfg.stride):
        window = inputs[:, :, rows, columns]
        shape = window.shape[2:]
        parts = _decode(model, window, [{
            **m, 'img_shape': shape
        } for m in metas], decoders)
        if not sums:
            sums = [
                Decoded(p.new_zeros(*p.shape[:2], height, width), head)
                for p, head in parts
            ]
        for (total, head), (part, _) in zip(sums, parts):
            total[:, :, rows,
                  columns] += resize_logits(part, shape, head.align_corners)
        count[rows, columns] += 1
    for total, _ in sums:
        total /= count
    return sums


def _windows(height: int, width: int, crop: Sequence[int],
             stride: Sequence[int]) -> Iterator[Sequence[slice]]:
    """mmseg's windows: the last ones end at the image's border."""
    spans = []
    for side, size, step in zip((height, width), crop, stride):
        num = max(side - size + step - 1, 0) // step + 1
        stops = [min(k * step + size, side) for k in range(num)]
        spans.append([slice(max(stop - size, 0), stop) for stop in stops])
    for rows in spans[0]:
        for columns in spans[1]:
            yield rows, columns
