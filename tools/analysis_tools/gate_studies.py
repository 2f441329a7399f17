# SPDX-License-Identifier: Apache-2.0
"""Studies of prototype gates on the images of a stream, without training.

Every study embeds the images of all domains with the frozen base, lets gates
learn the training images, and routes the others: as they are, without the
domain that they come from, or in other light and quality.
"""
from __future__ import annotations

import math
import os.path as osp
from collections import Counter
from functools import partial
from itertools import product
from typing import (Any, Callable, Dict, Iterable, Iterator, List, Mapping,
                    NamedTuple, Optional, Sequence, Tuple)

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from mmseg_mile.datasets.driving import sequence_of
from mmseg_mile.gates.embedders import (PERTURBATIONS,
                                        FeatureStatisticsEmbedder,
                                        augmented_views)
from mmseg_mile.gates.prototype_gate import PrototypeGate
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor

# Shape legend: N images, L views, D embedding, C channels, H x W grid

#: By domain, batches of the images to learn from and of those to route.
Images = Mapping[str, Tuple[Iterable[dict], Iterable[dict]]]
#: Of an image (H, W, C), 0 to 255.
Disturbance = Callable[[np.ndarray], np.ndarray]

_LAST: Dict[str, Any] = dict(stages=(-1, ), statistics=('mean', ))
_ALL: Dict[str, Any] = dict(stages=None, statistics=('mean', 'std'))
_FIRST: Dict[str, Any] = dict(_ALL, stages=(0, ))
#: Embedders of the routing study, at every scale.
STAGE_SETS: Dict[str, Dict[str, Any]] = {
    'last stage, mean': _LAST,
    'all stages, mean + std': _ALL,
    'first two stages, mean + std': dict(_ALL, stages=(0, 1)),
    'first stage, mean + std': _FIRST,
}
#: Embedders of the other studies.
EMBEDDINGS: Dict[str, Dict[str, Any]] = {
    'last stage, mean, full': _LAST,
    'all stages, half': dict(_ALL, scale=0.5),
    'first stage, quarter': dict(_FIRST, scale=0.25),
    'first stage, half': dict(_FIRST, scale=0.5),
    'first stage, full': _FIRST,
    'first three stages, full': dict(_ALL, stages=(0, 1, 2)),
}
_MILE_PLUS: Dict[str, Any] = dict(
    metric='mahalanobis', perturbation_weight=0.25)
#: Gates of the routing study.
GATES: Dict[str, Dict[str, Any]] = {
    'Euclidean': dict(metric='euclidean'),
    'cosine': dict(metric='cosine'),
    'Mahalanobis': _MILE_PLUS,
    'Euclidean, 8 prototypes': dict(metric='euclidean', num_prototypes=8),
    'Mahalanobis, 8 prototypes': dict(_MILE_PLUS, num_prototypes=8),
}
#: Gates of the held-out study.
HELD_OUT_GATES: Dict[str, Dict[str, Any]] = {
    'Euclidean': dict(metric='euclidean'),
    'Mahalanobis, shrinkage 0.5': dict(_MILE_PLUS, shrinkage=0.5),
    'Mahalanobis': _MILE_PLUS,
}
# What a gate with a perturbation weight learns from; others take the first.
_NUM_VIEWS = PrototypeGate(**_MILE_PLUS).num_views
# Parts of a domain's sequences that are held out in turn.
_MAX_FOLDS = 20
# Below this share of its images routed right, a sequence counts as lost.
_RIGHT = 0.95


class Split(NamedTuple):
    """Embeddings of one domain.

    Args:
        train (Tensor): (N, L, D), to learn, see :meth:`BaseGate.fit`.
        test (Tensor): (N, D), to route.
    """
    train: Tensor
    test: Tensor


# -- embeddings ----------------------------------------------------------


def embedders_of(model: ExpertSegmentor,
                 chosen: Optional[Sequence[str]] = None) -> Dict[str, Any]:
    """Embedders to compare, the model's own among them.

    Args:
        model (ExpertSegmentor): Its embedder is 'as configured'.
        chosen (Sequence[str], optional): Names of those that are wanted.
            Defaults to None: all.

    Raises:
        ValueError: If there is none of a name.
    """
    found: Dict[str, Any] = {
        name: FeatureStatisticsEmbedder(**options)
        for name, options in EMBEDDINGS.items()
    }
    found['as configured'] = model.embedder
    for name in chosen or ():
        if name not in found:
            raise ValueError(f'--embeddings has no {name!r}, choose from '
                             f'{list(found)}')
    return {name: found[name] for name in chosen or found}


def embed(model: ExpertSegmentor,
          embedders: Mapping[Any, Any],
          loader: Iterable[dict],
          num_views: int = 1,
          kinds: Sequence[str] = PERTURBATIONS) -> Dict[Any, Tensor]:
    """Embeddings of images by several embedders in one pass.

    Args:
        model (ExpertSegmentor): Whose frozen base and preprocessor.
        embedders (Mapping[Any, Any]): By name.
        loader (Iterable[dict]): Batches of images.
        num_views (int): L of each image. Defaults to 1: the image alone.
        kinds (Sequence[str]): What the other views change, see
            :func:`perturbed_image`. Defaults to all.

    Returns:
        dict[Any, Tensor]: By name, (N, L, D).
    """
    parts: Dict[Any, List[Tensor]] = {name: [] for name in embedders}
    for batch in loader:
        views = [
            model.data_preprocessor(view, False)['inputs']
            for view in augmented_views(batch, num_views, kinds)
        ]
        for name, embedder in embedders.items():
            found = [embedder(model.backbone, view).cpu() for view in views]
            parts[name].append(torch.stack(found, 1))
    return {name: torch.cat(part) for name, part in parts.items()}


def embed_domains(model: ExpertSegmentor, embedders: Mapping[Any, Any],
                  images: Images) -> Dict[Any, Dict[str, Split]]:
    """Embeddings of all images, by embedder and by domain."""
    found: Dict[Any, Dict[str, Split]] = {name: {} for name in embedders}
    for domain, (train, test) in images.items():
        learned = embed(model, embedders, train, _NUM_VIEWS)
        routed = embed(model, embedders, test)
        for name in embedders:
            found[name][domain] = Split(learned[name], routed[name][:, 0])
    return found


# -- which gate tells the domains apart ----------------------------------


def routing_study(model: ExpertSegmentor, images: Images,
                  scales: Sequence[float]) -> pd.DataFrame:
    """Routing accuracy of all gates on all sets of stages.

    Args:
        model (ExpertSegmentor): Whose frozen base and preprocessor.
        images (Images): Of all domains.
        scales (Sequence[float]): Of the gate's copies of the images.

    Returns:
        pd.DataFrame: Text; per cent of the images routed right, by domain
        and of all, and flagged as out-of-distribution.
    """
    embedders = {
        (label, scale): FeatureStatisticsEmbedder(scale=scale, **options)
        for scale, (label, options) in product(scales, STAGE_SETS.items())
    }
    rows = []
    for name, domains in embed_domains(model, embedders, images).items():
        for gate, options in GATES.items():
            figures = route(fitted(domains, **options), domains)
            rows.append([*name, _size(domains), gate] +
                        [f'{figure:.1f}' for figure in figures])
    return _frame(['embedding', 'scale', 'values', 'gate'] +
                  [f'{name} %' for name in images] + ['all %', 'flagged %'],
                  rows)


def fitted(domains: Mapping[str, Split], **options: Any) -> PrototypeGate:
    """A gate with these options that has learned the domains."""
    gate = PrototypeGate(**options)
    for name, split in domains.items():
        gate.fit(name, split.train)
    return gate


def route(gate: PrototypeGate, domains: Mapping[str, Split]) -> List[float]:
    """Figures of a gate that has learned these domains in this order.

    Returns:
        list[float]: Per cent of each domain's test images routed right, of
        all of them, and of all flagged as out-of-distribution.
    """
    right, flagged = [], []
    for index, split in enumerate(domains.values()):
        routing = gate.route(split.test, [None] * len(split.test))
        right.append(routing.weights.argmax(1) == index)
        flagged.append(routing.ood)
    return [
        100 * float(images.double().mean())
        for images in (*right, torch.cat(right), torch.cat(flagged))
    ]


def _size(domains: Mapping[str, Split]) -> int:
    """D."""
    return next(iter(domains.values())).test.shape[1]


def _frame(columns: Sequence[str], rows: Sequence[list]) -> pd.DataFrame:
    # not from dicts: a domain may be called like another column
    return pd.DataFrame([[str(cell) for cell in row] for row in rows],
                        columns=columns)


# -- images of a domain that no expert knows -----------------------------


class OodScores(NamedTuple):
    """How well the images of a domain held out are told from the others.

    Args:
        auroc (float): See :func:`auroc`.
        fpr95 (float): See :func:`fpr95`.
        false_alarms (float): Share of the known domains' images flagged.
        detected (float): Share of the images of the one held out flagged.
    """
    auroc: float
    fpr95: float
    false_alarms: float
    detected: float

    def __str__(self) -> str:
        return (f'{self.auroc:.3f} / {100 * self.fpr95:.0f} / '
                f'{100 * self.false_alarms:.1f} / {100 * self.detected:.0f}')


def held_out_study(model: ExpertSegmentor, images: Images,
                   embedders: Mapping[str, Any],
                   quantiles: Sequence[float]) -> pd.DataFrame:
    """Every domain held out of every gate.

    Args:
        model (ExpertSegmentor): Whose frozen base and preprocessor.
        images (Images): Of all domains, two at least.
        embedders (Mapping[str, Any]): By name.
        quantiles (Sequence[float]): ``ood_quantile`` of the gates.

    Returns:
        pd.DataFrame: Text; by domain held out, the AUROC, and in per cent
        FPR95, false alarms and detections; the per cent of images routed
        right when none is.

    Raises:
        ValueError: If there are fewer than two domains.
    """
    if len(images) < 2:
        raise ValueError('to hold a domain out takes two at least, got '
                         f'{list(images)}')
    embedded = embed_domains(model, embedders, images)
    rows = []
    for (name, domains), (gate, options), quantile in product(
            embedded.items(), HELD_OUT_GATES.items(), quantiles):
        options = dict(options, ood_quantile=quantile)
        right = route(fitted(domains, **options), domains)[-2]
        scores = hold_out(domains, **options)
        mean = OodScores(*np.mean(list(scores.values()), axis=0))
        rows.append(
            [name, _size(domains), gate, quantile, f'{right:.1f}'] +
            [scores[domain] for domain in images] + [
                f'{mean.auroc:.3f}', f'{100 * mean.false_alarms:.1f}',
                f'{100 * mean.detected:.0f}'
            ])
    return _frame(['embedding', 'values', 'gate', 'quantile', 'routed %'] +
                  list(images) +
                  ['mean AUROC', 'false alarms %', 'detected %'], rows)


def hold_out(domains: Mapping[str, Split],
             **options: Any) -> Dict[str, OodScores]:
    """Scores by the domain that a gate with these options has not learned.

    Only test images are scored: those of the domain held out should be
    flagged, those of the others should not.
    """
    found = {}
    for name, split in domains.items():
        known = {n: other for n, other in domains.items() if n != name}
        gate = fitted(known, **options)
        familiar = np.concatenate(
            [_ood_score(gate, other.test) for other in known.values()])
        ood = _ood_score(gate, split.test)
        found[name] = OodScores(
            auroc(familiar, ood), fpr95(familiar, ood),
            float(np.mean(familiar > 1)), float(np.mean(ood > 1)))
    return found


def _ood_score(gate: PrototypeGate, images: Tensor) -> np.ndarray:
    return gate.ood_score(images, gate.distances(images)).numpy()


def auroc(familiar: ArrayLike, ood: ArrayLike) -> float:
    """Area under the receiver operating characteristic.

    The share of all pairs in which the out-of-distribution image scores
    above the familiar one, where a tie is half a pair; 0.5 is chance.

    Args:
        familiar (ArrayLike): Scores of images of known domains.
        ood (ArrayLike): Scores of out-of-distribution images.

    Example: familiar 1, 2, 3 and out-of-distribution 2, 4: of six pairs four
    are in order and one is a tie -> 4.5 / 6 = 0.75.
    """
    known, ood = np.sort(familiar), np.asarray(ood)
    below = np.searchsorted(known, ood, 'left').sum()
    up_to = np.searchsorted(known, ood, 'right').sum()
    return float(below + up_to) / (2 * len(known) * len(ood))


def fpr95(familiar: ArrayLike, ood: ArrayLike) -> float:
    """Share of familiar images flagged when 95 % of the others are.

    The threshold is the highest that flags, with the images on it, at least
    95 % of the out-of-distribution images; arguments as of :func:`auroc`.

    Example: familiar 1, 2, 3, 4 and out-of-distribution 3, 5: 95 % of two
    are both, so the threshold is 3 -> 2 / 4 = 0.5.
    """
    ood = np.sort(ood)
    # rounded first: 0.95 * 20 is a little above 19 in floating point
    count = math.ceil(round(0.95 * len(ood), 9))
    threshold = ood[len(ood) - count]
    return float(np.mean(np.asarray(familiar) >= threshold))


# -- sequences that no gate has seen --------------------------------------


def gate_options(model: ExpertSegmentor) -> Dict[str, Any]:
    """Settings of the model's gate that variants of it keep.

    Returns:
        dict: ``weight``, ``shrinkage`` and ``kinds`` of perturbations.
    """
    gate = model.gate if isinstance(model.gate,
                                    PrototypeGate) else PrototypeGate()
    return dict(
        weight=gate.perturbation_weight,
        shrinkage=gate.shrinkage,
        kinds=gate.perturbations)


def sequence_study(model: ExpertSegmentor, images: Images,
                   embedders: Mapping[str, Any],
                   perturbation_weights: Sequence[float],
                   shrinkages: Sequence[float]) -> pd.DataFrame:
    """Training images routed by gates that saw no image of their sequence.

    Frames of a drive resemble each other, so that images next to those that
    were learned say little about new drives. Sequences are held out in turn,
    where a domain has many, a twentieth of them at a time; a domain of one
    sequence is cut into its first and its second half. Validation images
    are not looked at.

    Args:
        model (ExpertSegmentor): Whose frozen base and preprocessor; the kinds
            of perturbations are those of its gate.
        images (Images): Of all domains.
        embedders (Mapping[str, Any]): By name.
        perturbation_weights (Sequence[float]): See :class:`PrototypeGate`.
        shrinkages (Sequence[float]): Likewise.

    Returns:
        pd.DataFrame: Text; per cent of the images routed right, of all and
        by domain, sequences of which less than 95 % are, the worst of them,
        and per cent of the images flagged as out-of-distribution.
    """
    kinds = gate_options(model)['kinds']
    embedded: Dict[str, Dict[str, Tensor]] = {name: {} for name in embedders}
    sequences: Dict[str, List[str]] = {}
    for domain, (train, _) in images.items():
        seen: List[str] = []
        found = embed(model, embedders, _noted(train, seen), _NUM_VIEWS, kinds)
        for name in embedders:
            embedded[name][domain] = found[name]
        sequences[domain] = _in_halves(seen)
    rows = []
    for (name, parts), weight, shrinkage in product(embedded.items(),
                                                    perturbation_weights,
                                                    shrinkages):
        scores = hold_out_sequences(
            parts,
            sequences,
            metric='mahalanobis',
            perturbation_weight=weight,
            shrinkage=shrinkage)
        lost = scores[scores.right < _RIGHT * scores.images]
        worst = lost.assign(share=lost.right /
                            lost.images).sort_values('share')[:3]
        rows.append(
            [name,
             next(iter(parts.values())).shape[-1], weight, shrinkage] +
            [_per_cent(scores.right, scores.images)] + [
                _per_cent(group.right, group.images)
                for _, group in scores.groupby('domain', sort=False)
            ] + [f'{len(lost)} of {len(scores)}'] + [
                ', '.join(f'{w.sequence} {w.right}/{w.images}'
                          for w in worst.itertuples())
            ] + [_per_cent(scores.flagged, scores.images)])
    return _frame(
        ['embedding', 'values', 'perturbation weight', 'shrinkage', 'right %'
         ] + [f'{name} %' for name in images] +
        ['sequences below 95 %', 'worst', 'flagged %'], rows)


def _per_cent(part: pd.Series, whole: pd.Series) -> str:
    return f'{100 * part.sum() / whole.sum():.2f}'


def _noted(loader: Iterable[dict], seen: List[str]) -> Iterator[dict]:
    """Batches, while the sequences of their images are added to ``seen``."""
    for batch in loader:
        seen += [
            sequence_of(sample.metainfo) for sample in batch['data_samples']
        ]
        yield batch


def _in_halves(sequences: List[str]) -> List[str]:
    if len(set(sequences)) > 1:
        return sequences
    half = len(sequences) // 2
    return [
        f'{sequence} ({1 if index < half else 2} of 2)'
        for index, sequence in enumerate(sequences)
    ]


def hold_out_sequences(embeddings: Mapping[str, Tensor],
                       sequences: Mapping[str, Sequence[str]],
                       **options: Any) -> pd.DataFrame:
    """Routing of each sequence by a gate that has not learned it.

    Args:
        embeddings (Mapping[str, Tensor]): By domain, (N, L, D).
        sequences (Mapping[str, Sequence[str]]): By domain, of the N images.
        **options: Of :class:`PrototypeGate`.

    Returns:
        pd.DataFrame: By sequence, ``domain``, ``sequence``, ``images``, and
        how many were routed ``right`` and ``flagged``.
    """
    whole = {
        name: Split(rows, rows[:, 0])
        for name, rows in embeddings.items()
    }
    gate = fitted(whole, **options)
    lines = []
    for index, (domain, rows) in enumerate(embeddings.items()):
        own = np.array(sequences[domain])
        names = list(dict.fromkeys(own))
        folds = min(_MAX_FOLDS, len(names))
        state = gate.state(domain)
        for fold in range(folds):
            out = torch.from_numpy(np.isin(own, names[fold::folds]))
            refit = PrototypeGate(**options)
            refit.fit(domain, rows[~out])
            gate.load_state(domain, refit.state(domain))
            routing = gate.route(rows[out, 0], [None] * int(out.sum()))
            right = routing.weights.argmax(1) == index
            counts = Counter(own[out])
            hits = Counter(own[out][right.numpy()])
            flags = Counter(own[out][routing.ood.numpy()])
            lines += [
                dict(
                    domain=domain,
                    sequence=osp.basename(name),
                    images=counts[name],
                    right=hits[name],
                    flagged=flags[name]) for name in names[fold::folds]
            ]
        gate.load_state(domain, state)
    return pd.DataFrame(lines)


# -- images in other light and quality -----------------------------------


def perturbation_study(model: ExpertSegmentor, images: Images,
                       embedders: Mapping[str, Any],
                       perturbation_weights: Sequence[float]) -> pd.DataFrame:
    """Routing of disturbed images by gates that learned undisturbed ones.

    Args:
        model (ExpertSegmentor): Whose frozen base and preprocessor.
        images (Images): Of all domains, three channels, values 0 to 255.
        embedders (Mapping[str, Any]): By name.
        perturbation_weights (Sequence[float]): See :class:`PrototypeGate`.

    Returns:
        pd.DataFrame: Text; per cent of images routed right / flagged.
    """
    own = gate_options(model)
    learned = {
        domain: embed(model, embedders, train, _NUM_VIEWS, own['kinds'])
        for domain, (train, _) in images.items()
    }
    disturbed = [{
        domain: embed(model, embedders, _changed(test, change))
        for domain, (_, test) in images.items()
    } for change in DISTURBANCES.values()]
    rows = []
    for name, weight in product(embedders, perturbation_weights):
        qualities = [{
            domain: Split(train[name], tests[domain][name][:, 0])
            for domain, train in learned.items()
        } for tests in disturbed]
        gate = fitted(
            qualities[0],
            metric='mahalanobis',
            shrinkage=own['shrinkage'],
            perturbation_weight=weight)
        figures = [route(gate, domains)[-2:] for domains in qualities]
        cells = [f'{right:.1f} / {flagged:.0f}' for right, flagged in figures]
        rows.append([name, _size(qualities[0]), weight, *cells])
    return _frame(['embedding', 'values', 'perturbation weight'] +
                  list(DISTURBANCES), rows)


def _changed(loader: Iterable[dict],
             change: Disturbance) -> Iterator[Dict[str, Any]]:
    for batch in loader:
        arrays = [
            change(np.ascontiguousarray(image.permute(1, 2, 0)))
            for image in batch['inputs']
        ]
        yield dict(
            batch,
            inputs=[torch.from_numpy(a).permute(2, 0, 1) for a in arrays])


def scaled(image: np.ndarray, gain: float) -> np.ndarray:
    """Every value times ``gain``, within 0 to 255."""
    return _rounded(image * np.float32(gain))


def softened(image: np.ndarray, scale: float) -> np.ndarray:
    """Shrunk to ``scale`` of its size and enlarged again."""
    height, width = image.shape[:2]
    small = cv2.resize(
        image, (round(width * scale), round(height * scale)),
        interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height))


def compressed(image: np.ndarray, quality: int) -> np.ndarray:
    """Through a JPEG file of this quality, 0 to 100."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    _, data = cv2.imencode('.jpg', _rounded(image), options)
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))


def noisy(image: np.ndarray, deviation: float) -> np.ndarray:
    """With Gaussian noise, the same for images of a size."""
    height, width, channels = image.shape
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(channels, height, width, generator=draw)
    return _rounded(image + deviation * noise.permute(1, 2, 0).numpy())


def _rounded(image: np.ndarray) -> np.ndarray:
    return image.round().clip(0, 255).astype(np.uint8)


DISTURBANCES: Dict[str, Disturbance] = {
    'as it is': lambda image: image,
    '10 % darker': partial(scaled, gain=0.9),
    '20 % darker': partial(scaled, gain=0.8),
    '20 % brighter': partial(scaled, gain=1.2),
    'JPEG 50': partial(compressed, quality=50),
    '3/4 size': partial(softened, scale=0.75),
    'half size': partial(softened, scale=0.5),
    'noise 3': partial(noisy, deviation=3),
    'noise 8': partial(noisy, deviation=8),
}
