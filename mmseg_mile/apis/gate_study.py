# SPDX-License-Identifier: Apache-2.0
"""Which gate tells a set of domains apart, before anything is trained."""
from __future__ import annotations

from typing import (Any, Dict, Iterable, List, Mapping, NamedTuple, Sequence,
                    Tuple)

import numpy as np
import torch
from prettytable import PrettyTable, TableStyle
from torch import Tensor

from mmseg_mile.gates.embedders import FeatureStatisticsEmbedder
from mmseg_mile.gates.prototype_gate import PrototypeGate
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor

# Shape legend: N images, D embedding
STAGE_SETS: Dict[str, Tuple[str, Tuple[str, ...]]] = {
    'last stage, mean': ('last', ('mean', )),
    'all stages, mean + std': ('all', ('mean', 'std')),
    'first two stages, mean + std': ('early', ('mean', 'std')),
    'first stage, mean + std': ('first', ('mean', 'std')),
}
GATES: Dict[str, dict] = {
    'Euclidean': dict(metric='euclidean'),
    'cosine': dict(metric='cosine'),
    'Mahalanobis': dict(metric='mahalanobis'),
    'Euclidean, 8 prototypes': dict(metric='euclidean', num_prototypes=8),
    'Mahalanobis, 8 prototypes': dict(metric='mahalanobis', num_prototypes=8),
}


class Split(NamedTuple):
    """Embeddings of one domain.

    Args:
        train (Tensor): To learn from, see :meth:`BaseGate.fit`.
        test (Tensor): (N, D), to route.
    """
    train: Tensor
    test: Tensor


class StageEmbeddings:
    """Embeddings of images at one scale, sliced per stage and statistic.

    Args:
        model (ExpertSegmentor): Whose frozen base and preprocessor.
        scale (float): Of the gate's copy of the image.
    """

    def __init__(self, model: ExpertSegmentor, scale: float) -> None:
        self._model = model
        self._embedder = FeatureStatisticsEmbedder(scale=scale)
        with torch.no_grad(), model.backbone.base():
            outputs = model.backbone(
                torch.zeros(1, 3, 128, 128, device=model.device))
        self._channels = [int(o.shape[1]) for o in outputs]

    def embed(self, loader: Iterable[dict], num_views: int = 1) -> Tensor:
        """Embeddings over all stages and both statistics.

        Args:
            loader (Iterable[dict]): Batches of images.
            num_views (int): L, at each image, see :meth:`BaseGate.fit`.
                Defaults to 1.

        Returns:
            Tensor: (N, D), or (N, L, D) for several looks.
        """
        model = self._model
        return torch.cat([
            model.embed_views(batch, num_views, self._embedder)
            for batch in loader
        ])

    def columns(self, stages: str, statistics: Sequence[str]) -> List[int]:
        """Columns of 'last', 'all', 'early' (two) or 'first' stages."""
        total = len(self._channels)
        chosen = dict(
            last=[total - 1],
            all=range(total),
            early=range(min(2, total)),
            first=[0])[stages]
        columns: List[int] = []
        start = 0
        for stage, channels in enumerate(self._channels):
            for offset, name in enumerate(('mean', 'std')):
                if stage in chosen and name in statistics:
                    first = start + offset * channels
                    columns += range(first, first + channels)
            start += 2 * channels
        return columns


def routing_study(model: ExpertSegmentor, images: Mapping[str, Tuple[Any,
                                                                     Any]],
                  scales: Sequence[float]) -> PrettyTable:
    """A table of all gates on all sets of stages.

    Args:
        model (ExpertSegmentor): Whose frozen base and preprocessor.
        images (Mapping[str, tuple]): By domain, loaders of the images to
            learn from and of those to route.
        scales (Sequence[float]): Of the gate's copies of the images.

    Returns:
        PrettyTable: In Markdown; per cent of the images routed right.
    """
    table = PrettyTable(['embedding', 'scale', 'values', 'gate'] +
                        [f'{n} %' for n in images] + ['all %', 'flagged %'])
    table.set_style(TableStyle.MARKDOWN)
    for scale in scales:
        stages = StageEmbeddings(model, scale)
        whole = {
            name:
            Split(
                stages.embed(train,
                             PrototypeGate().num_views), stages.embed(test))
            for name, (train, test) in images.items()
        }
        for label, (chosen, statistics) in STAGE_SETS.items():
            columns = stages.columns(chosen, statistics)
            part = {
                n: Split(s.train[..., columns], s.test[:, columns])
                for n, s in whole.items()
            }
            for gate, options in GATES.items():
                confusion, flagged = route_all(PrototypeGate(**options), part)
                right = confusion.diagonal() / confusion.sum(1)
                all_right = confusion.trace() / confusion.sum()
                table.add_row(
                    [label, scale, len(columns), gate] +
                    [f'{100 * r:.1f}' for r in right] +
                    [f'{100 * all_right:.1f}', f'{100 * flagged:.1f}'])
    return table


def route_all(gate: PrototypeGate,
              domains: Mapping[str, Split]) -> Tuple[np.ndarray, float]:
    """Confusion of a gate that learns every domain and routes the rest.

    Args:
        gate (PrototypeGate): Not fitted yet.
        domains (Mapping[str, Split]): By name.

    Returns:
        tuple[np.ndarray, float]: (T, T) image counts, rows true domain,
        columns chosen; share of the test images flagged out-of-distribution.
    """
    for name, split in domains.items():
        gate.fit(name, split.train)
    return route_known(gate, {n: split.test for n, split in domains.items()})


def route_known(gate: PrototypeGate,
                images: Mapping[str, Tensor]) -> Tuple[np.ndarray, float]:
    """Confusion of a gate that has learned every domain.

    Args:
        gate (PrototypeGate): Has learned the domains in this order.
        images (Mapping[str, Tensor]): (N, D) of each domain.

    Returns:
        tuple[np.ndarray, float]: See :func:`route_all`.
    """
    confusion = np.zeros((len(images), len(images)), dtype=int)
    flagged = 0
    for row, test in enumerate(images.values()):
        routing = gate.route(test, [None] * len(test))
        chosen = routing.weights.argmax(1).numpy()
        confusion[row] = np.bincount(chosen, minlength=len(images))
        flagged += int(routing.ood.sum())
    return confusion, flagged / max(1, int(confusion.sum()))
