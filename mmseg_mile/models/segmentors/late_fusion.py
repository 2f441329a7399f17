# SPDX-License-Identifier: Apache-2.0
"""Experts that predict one by one, their probabilities averaged."""
from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence

import torch
from torch import Tensor

from mmseg_mile.structures import Routing
from .batch_decoding import Decoder
from .predicted_samples import PredictedSamples

if TYPE_CHECKING:
    from .routed_segmentor import RoutedSegmentor

# Shape legend: n images, C classes, h x w grid of the logits


def decode_late(model: 'RoutedSegmentor', predicted: PredictedSamples,
                inputs: Tensor, routing: Routing,
                indices: Sequence[int]) -> None:
    """Write predictions of images, one forward per expert of a mixture.

    ``p = sum_i w_i softmax(z_i)`` over the experts that share the classes of
    the heaviest one, at the resolution of the head; ``log p`` stands for
    the logits.

    Args:
        model (RoutedSegmentor): Its backbone and heads.
        predicted (PredictedSamples): Of the whole batch.
        inputs (Tensor): (B, C, H, W), all of the batch.
        routing (Routing): Of the batch.
        indices (Sequence[int]): The images to write.
    """
    metas = predicted.metas()
    chosen = routing.take(indices)
    for mixture, own in chosen.groups():
        places = [indices[i] for i in own]
        logits, head = _averaged(model, inputs[places],
                                 [metas[i] for i in places], mixture)
        predicted.write(places, logits, head)


def _averaged(model: 'RoutedSegmentor', inputs: Tensor,
              metas: List[Dict[str, Any]], mixture: Mapping[str,
                                                            float]) -> Any:
    """(n, C, h, w) log-probabilities, and a head to resize them."""
    total: Optional[Tensor] = None
    head: Any = None
    for name, weight in model.heads.alike(mixture).items():
        decoder = Decoder(
            partial(model.heads.fused, {name: 1.0}, model.device),
            range(len(inputs)))
        with model.backbone.using(name):
            (logits, head), = model.decode(inputs, metas, [decoder])
        part = weight * _probabilities(logits)
        total = part if total is None else total + part
    assert total is not None
    return _logits(total), head


def _probabilities(logits: Tensor) -> Tensor:
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


def _logits(probabilities: Tensor) -> Tensor:
    tiny = torch.finfo(probabilities.dtype).tiny
    if probabilities.shape[1] == 1:
        return probabilities.logit(eps=1e-7)
    return probabilities.clamp_min(tiny).log()
