# SPDX-License-Identifier: Apache-2.0
"""How well a flag knows the images of a domain that was held out."""
from __future__ import annotations

from itertools import product
from typing import (Any, Dict, Iterable, List, Mapping, NamedTuple, Optional,
                    Sequence, Tuple)

import numpy as np
import torch
from prettytable import PrettyTable, TableStyle
from torch import Tensor

from mmseg_mile.evaluation.ood_scores import FlagScores, flag_scores
from mmseg_mile.gates.embedders import FeatureStatisticsEmbedder
from mmseg_mile.gates.prototype_gate import PrototypeGate
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from .gate_study import Split, route_all

# Shape legend: N images, D embedding
STAGES: Dict[str, Dict[str, Any]] = {
    'last stage, mean, full': dict(stages=(-1, ), statistics=('mean', )),
    'all stages, half': dict(scale=0.5),
    'first stage, quarter': dict(stages=(0, ), scale=0.25),
    'first stage, half': dict(stages=(0, ), scale=0.5),
    'first stage, full': dict(stages=(0, )),
}
FLAGS: Dict[str, Dict[str, Any]] = {
    'Euclidean': dict(metric='euclidean', flag='shared'),
    'shared, shrinkage 0.5': dict(flag='shared', shrinkage=0.5),
    'shared': dict(flag='shared'),
    'own': dict(flag='own'),
}


class HeldOut(NamedTuple):
    """One embedder and flag, every domain held out in turn.

    Args:
        scores (dict[str, FlagScores]): By the domain held out.
        routed (float): Share of the test images that are routed right when
            no domain is held out, 0 to 1.
    """
    scores: Dict[str, FlagScores]
    routed: float


def embedders_of(model: ExpertSegmentor,
                 chosen: Optional[Sequence[str]] = None) -> Dict[str, Any]:
    """The model's own embedder, and others to compare it with.

    Args:
        model (ExpertSegmentor): Its embedder is 'as configured'.
        chosen (Sequence[str], optional): Names of those that are wanted.
            Defaults to None: all.

    Raises:
        ValueError: If there is none of a name.
    """
    found: Dict[str, Any] = {
        name: FeatureStatisticsEmbedder(**options)
        for name, options in STAGES.items()
    }
    found['as configured'] = model.embedder
    for name in chosen or ():
        if name not in found:
            raise ValueError(f'there is no embedding {name!r}, there are '
                             f'{list(found)}')
    return {name: found[name] for name in chosen or found}


def embed_all(model: ExpertSegmentor,
              embedders: Mapping[str, Any],
              loader: Iterable[dict],
              num_views: int = 1) -> Dict[str, Tensor]:
    """Embeddings of images by several embedders in one pass.

    Args:
        model (ExpertSegmentor): Whose frozen base and preprocessor.
        embedders (Mapping[str, Any]): By name.
        loader (Iterable[dict]): Batches of images.
        num_views (int): L, at each image, see :meth:`BaseGate.fit`.
            Defaults to 1.

    Returns:
        dict[str, Tensor]: By name (N, D), or (N, L, D) for several looks.
    """
    parts: Dict[str, List[Tensor]] = {name: [] for name in embedders}
    for batch in loader:
        for name, embedder in embedders.items():
            parts[name].append(model.embed_views(batch, num_views, embedder))
    return {name: torch.cat(part) for name, part in parts.items()}


def hold_out(domains: Mapping[str, Split], **gate: Any) -> HeldOut:
    """Learn all domains but one; is an image of that one noticed?

    Familiar are the test images of the domains that were learned,
    out-of-distribution those of the one held out: no image that is scored was
    learned from.

    Args:
        domains (Mapping[str, Split]): By name, two at least.
        **gate: Of :class:`PrototypeGate`.

    Raises:
        ValueError: If there are fewer than two domains.
    """
    if len(domains) < 2:
        raise ValueError('to hold one domain out takes two at least, got '
                         f'{list(domains)}')
    scores = {}
    for name in domains:
        known = {n: split for n, split in domains.items() if n != name}
        learned = PrototypeGate(**gate)
        for other, split in known.items():
            learned.fit(other, split.train)
        familiar = np.concatenate(
            [_ood_score(learned, s.test) for s in known.values()])
        scores[name] = flag_scores(familiar,
                                   _ood_score(learned, domains[name].test))
    confusion, _ = route_all(PrototypeGate(**gate), domains)
    return HeldOut(scores, float(confusion.trace() / confusion.sum()))


def held_out_study(model: ExpertSegmentor, images: Mapping[str, Tuple[Any,
                                                                      Any]],
                   embedders: Mapping[str, Any],
                   quantiles: Sequence[float]) -> PrettyTable:
    """Embed all images once, and hold each domain out.

    Args:
        model (ExpertSegmentor): Whose frozen base and preprocessor.
        images (Mapping[str, tuple]): By domain, loaders of the images to
            learn from and of those to score.
        embedders (Mapping[str, Any]): By name.
        quantiles (Sequence[float]): See :func:`held_out_table`.

    Returns:
        PrettyTable: See :func:`held_out_table`.
    """
    embedded = {
        name: (embed_all(model, embedders, train,
                         PrototypeGate().num_views),
               embed_all(model, embedders, test))
        for name, (train, test) in images.items()
    }
    return held_out_table(
        {
            label: {
                name: Split(*(part[label] for part in parts))
                for name, parts in embedded.items()
            }
            for label in embedders
        }, quantiles)


def held_out_table(domains: Mapping[str, Mapping[str, Split]],
                   quantiles: Sequence[float]) -> PrettyTable:
    """Every embedder with every flag.

    A cell has, for the domain held out, the AUROC, and in per cent FPR95,
    false alarms and detections; see :class:`FlagScores`.

    Args:
        domains (Mapping[str, Mapping[str, Split]]): By embedder, by domain.
        quantiles (Sequence[float]): ``ood_quantile`` of the gates.

    Returns:
        PrettyTable: In Markdown.
    """
    names = list(next(iter(domains.values())))
    table = PrettyTable(
        ['embedding', 'values', 'flag', 'quantile', 'routed %'] + names +
        ['mean AUROC', 'false alarms %', 'detected %'])
    table.set_style(TableStyle.MARKDOWN)
    for (embedding,
         splits), (flag, options), quantile in product(domains.items(),
                                                       FLAGS.items(),
                                                       quantiles):
        size = splits[names[0]].train.shape[-1]
        found = hold_out(splits, ood_quantile=quantile, **options)
        means = np.mean(list(found.scores.values()), axis=0)
        table.add_row(
            [embedding, size, flag, quantile, f'{100 * found.routed:.1f}'] +
            [_cell(found.scores[name]) for name in names] + [
                f'{means[0]:.3f}', f'{100 * means[2]:.1f}',
                f'{100 * means[3]:.0f}'
            ])
    return table


def _cell(scores: FlagScores) -> str:
    return (f'{scores.auroc:.3f} / {100 * scores.fpr95:.0f} / '
            f'{100 * scores.false_alarms:.1f} / {100 * scores.detected:.0f}')


def _ood_score(gate: PrototypeGate, images: Tensor) -> np.ndarray:
    values = gate.route(images, [None] * len(images)).ood_score
    assert values is not None
    return values.numpy()
