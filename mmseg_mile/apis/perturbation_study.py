# SPDX-License-Identifier: Apache-2.0
"""How images of known domains are routed in other light and quality."""
from __future__ import annotations

from typing import (Any, Callable, Dict, Iterable, Iterator, Mapping, Sequence,
                    Tuple)

import cv2
import numpy as np
import torch
from prettytable import PrettyTable, TableStyle
from torch import Tensor

from mmseg_mile.gates.prototype_gate import PrototypeGate
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from .gate_study import route_known
from .held_out_study import embed_all

# Shape legend: C channels, H x W grid
Disturbance = Callable[[Tensor], Tensor]


def scaled(gain: float) -> Disturbance:
    """Every value times ``gain``, within 0 to 255."""
    return lambda image: _rounded(image.float() * gain)


def softened(scale: float) -> Disturbance:
    """Shrunk to ``scale`` of its size and enlarged again."""

    def soften(image: Tensor) -> Tensor:
        array = _array(image)
        height, width = array.shape[:2]
        small = cv2.resize(
            array, (round(width * scale), round(height * scale)),
            interpolation=cv2.INTER_AREA)
        return _tensor(cv2.resize(small, (width, height)))

    return soften


def compressed(quality: int) -> Disturbance:
    """Through a JPEG file of this quality, 0 to 100."""

    def compress(image: Tensor) -> Tensor:
        _, data = cv2.imencode('.jpg', _array(image),
                               [cv2.IMWRITE_JPEG_QUALITY, quality])
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert decoded is not None
        return _tensor(decoded)

    return compress


def noisy(deviation: float) -> Disturbance:
    """With Gaussian noise, the same for images of a size."""

    def add(image: Tensor) -> Tensor:
        draw = torch.Generator().manual_seed(0)
        noise = torch.randn(image.shape, generator=draw)
        return _rounded(image.float() + deviation * noise)

    return add


DISTURBANCES: Dict[str, Disturbance] = {
    'as it is': lambda image: image,
    '10 % darker': scaled(0.9),
    '20 % darker': scaled(0.8),
    '20 % brighter': scaled(1.2),
    'JPEG 50': compressed(50),
    '3/4 size': softened(0.75),
    'half size': softened(0.5),
    'noise 3': noisy(3),
    'noise 8': noisy(8),
}


def perturbation_study(model: ExpertSegmentor, images: Mapping[str,
                                                               Tuple[Any,
                                                                     Any]],
                       embedders: Mapping[str, Any],
                       perturbation_weights: Sequence[float]) -> PrettyTable:
    """Embed all images in all qualities, and route them.

    A gate learns the training images as they are, and routes the others
    disturbed.

    Args:
        model (ExpertSegmentor): Whose frozen base and preprocessor.
        images (Mapping[str, tuple]): By domain, loaders of 8-bit images of
            three channels, to learn from and to route.
        embedders (Mapping[str, Any]): By name.
        perturbation_weights (Sequence[float]): See :class:`PrototypeGate`.

    Returns:
        PrettyTable: In Markdown; per cent of images routed right / flagged.
    """
    looks = PrototypeGate().num_views
    learned = {
        name: embed_all(model, embedders, train, looks)
        for name, (train, _) in images.items()
    }
    disturbed = {
        label: {
            name: embed_all(model, embedders, _changed(test, change))
            for name, (_, test) in images.items()
        }
        for label, change in DISTURBANCES.items()
    }
    table = PrettyTable(['embedding', 'values', 'drift weight'] +
                        list(DISTURBANCES))
    table.set_style(TableStyle.MARKDOWN)
    for embedding in embedders:
        for weight in perturbation_weights:
            gate = PrototypeGate(perturbation_weight=weight)
            for name, train in learned.items():
                gate.fit(name, train[embedding])
            size = next(iter(learned.values()))[embedding].shape[-1]
            cells = [
                _cell(gate, {
                    n: test[embedding]
                    for n, test in tests.items()
                }) for tests in disturbed.values()
            ]
            table.add_row([embedding, size, weight, *cells])
    return table


def _cell(gate: PrototypeGate, tests: Mapping[str, Tensor]) -> str:
    confusion, flagged = route_known(gate, tests)
    right = confusion.trace() / confusion.sum()
    return f'{100 * right:.1f} / {100 * flagged:.0f}'


def _changed(loader: Iterable[dict],
             change: Disturbance) -> Iterator[Dict[str, Any]]:
    for batch in loader:
        yield dict(batch, inputs=[change(image) for image in batch['inputs']])


def _array(image: Tensor) -> np.ndarray:
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).permute(2, 0, 1)


def _rounded(image: Tensor) -> Tensor:
    return image.round().clamp(0, 255).to(torch.uint8)
