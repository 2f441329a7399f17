# SPDX-License-Identifier: Apache-2.0
"""One encoding of a batch, decoded by one head or by several."""
from __future__ import annotations

from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Sequence

from torch import Tensor, nn

from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from .label_maps import resize_logits

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
