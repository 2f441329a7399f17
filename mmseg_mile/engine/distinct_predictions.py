# SPDX-License-Identifier: Apache-2.0
"""Images predicted in several ways, each distinct one once."""
from __future__ import annotations

import contextlib
import copy
from dataclasses import replace
from typing import (Any, ContextManager, Dict, Iterator, List, Mapping,
                    NamedTuple, Optional, Sequence, Tuple)

import torch
from torch import Tensor, nn

from mmseg_mile.evaluation import DomainIoU
from mmseg_mile.gates.base_gate import BaseGate
from mmseg_mile.methods.mile.expert_heads import ExpertHeads, heaviest
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from mmseg_mile.methods.semla.open_vocabulary import \
    OpenVocabularyExpertSegmentor
from mmseg_mile.structures import Routing, Task

# Weights that agree in as many digits give one prediction.
_DIGITS = 6
_TILT = 1e-5

Key = Tuple[Any, ...]


class Way(NamedTuple):
    """One prediction of one image.

    Args:
        place (int): Of the image in its batch.
        routing (Routing): Of this image alone.
        fusion (str): 'weights' and 'logits' as in ``RoutedSegmentor``;
            'adapters' fuses no heads, the nearest expert's speaks. Heads
            that were drawn each for itself have no common order of hidden
            units, so that their average need not be a head.
    """
    place: int
    routing: Routing
    fusion: str


Ways = Dict[Key, Way]


def way_of(model: ExpertSegmentor, routing: Routing, index: int, fusion: str,
           ways: Ways) -> Optional[Key]:
    """Note how an image is to be predicted, unless it is noted already.

    Args:
        model (ExpertSegmentor): Will predict.
        routing (Routing): Of a batch.
        index (int): The image's position in it.
        fusion (str): See :class:`Way`; of no account for one expert.
        ways (dict): Takes up what is new.

    Returns:
        tuple: Its key in ``ways``; None for an image that gets no
        prediction.
    """
    if routing.abstains is not None and routing.abstains[index]:
        return None
    mixture = {
        name: round(weight, _DIGITS)
        for name, weight in routing.mixture(index).items()
    }
    own = routing.take([index])
    if fusion == 'adapters' and len(mixture) > 1:
        own = _nearest_heaviest(own)
    if mixture:
        fusion = fusion if len(mixture) > 1 else 'weights'
        key: Key = (index, fusion, own.top_expert(0), *sorted(mixture.items()))
    else:
        # the base speaks with a head that depends on who is there
        first = model.expert_names[0] in routing.expert_names
        key = (index, 'base', routing.top_expert(index), first)
    ways.setdefault(key, Way(index, own, fusion))
    return key


def predict_ways(model: ExpertSegmentor, task: Task, batch: Dict[str, Any],
                 ways: Ways) -> Dict[Key, DomainIoU]:
    """Predict images in every way, as many at a time as a batch has.

    Args:
        model (ExpertSegmentor): In eval mode.
        task (Task): Its classes are the label space of the counts.
        batch (dict): B images; stays as it is.
        ways (dict): Of :func:`way_of`.

    Returns:
        dict[tuple, DomainIoU]: Counts of each way.
    """
    kinds: Dict[Tuple[Any, ...], List[Key]] = {}
    for key, way in ways.items():
        kinds.setdefault((way.fusion, way.routing.expert_names),
                         []).append(key)
    size = len(batch['inputs'])
    found: Dict[Key, DomainIoU] = {}
    with _asked_in_classes_of(model, task):
        for keys in kinds.values():
            for start in range(0, len(keys), size):
                part = keys[start:start + size]
                outputs = _predict(model, batch, [ways[key] for key in part])
                for key, output in zip(part, outputs):
                    found[key] = _counted(task, output)
    return found


def _asked_in_classes_of(model: ExpertSegmentor,
                         task: Task) -> ContextManager[None]:
    """Who speaks in any classes is asked for the target's."""
    if isinstance(model, OpenVocabularyExpertSegmentor):
        return model.using_vocabulary(task.classes, task.palette)
    return contextlib.nullcontext()


class _GivenGate(BaseGate):
    """Repeats a routing."""

    def __init__(self, routing: Routing) -> None:
        super().__init__()
        self._routing = routing

    def route(self, embeddings: Optional[Tensor],
              tasks: Sequence[Optional[str]]) -> Routing:
        """What it was given."""
        return self._routing


@torch.no_grad()
def _predict(model: ExpertSegmentor, batch: Dict[str, Any],
             ways: Sequence[Way]) -> List[Any]:
    """Data samples of images, all of one fusion and one set of experts."""
    routing = Routing(
        ways[0].routing.expert_names,
        torch.cat([way.routing.weights.cpu() for way in ways]),
        torch.cat([way.routing.distances.cpu() for way in ways]),
        # what became of flagged images is in the weights already
        torch.zeros(len(ways), dtype=torch.bool))
    again = dict(
        inputs=[batch['inputs'][way.place] for way in ways],
        data_samples=[
            copy.deepcopy(batch['data_samples'][way.place]) for way in ways
        ])
    with model.gated(_GivenGate(routing)), _fusing(model, ways[0].fusion):
        return model.test_step(again)


def _nearest_heaviest(routing: Routing) -> Routing:
    """Of one image: experts of equal weight no longer, the nearest leads."""
    weights = routing.weights.clone()
    chosen = weights[0] > 0
    far = routing.distances[0].to(weights).masked_fill(~chosen, torch.inf)
    nearest = far.argmin()
    # too little to be seen in a prediction
    weights[0, nearest] = weights.max() + _TILT
    return replace(routing, weights=weights / weights.sum())


class _HeaviestHeads:
    """Heads of experts of which no two are ever averaged."""

    def __init__(self, heads: ExpertHeads) -> None:
        self._heads = heads

    def fused(self, mixture: Mapping[str, float],
              device: torch.device) -> nn.Module:
        return self._heads.module(heaviest(mixture), device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._heads, name)


@contextlib.contextmanager
def _fusing(model: ExpertSegmentor, fusion: str) -> Iterator[None]:
    heads, previous = model.heads, model.fusion
    if fusion == 'adapters':
        model.fusion = 'weights'
        model.heads = _HeaviestHeads(heads)  # type: ignore[assignment]
    else:
        model.fusion = fusion
    try:
        yield
    finally:
        model.fusion, model.heads = previous, heads


def _counted(task: Task, output: Any) -> DomainIoU:
    counts = DomainIoU(task.classes)
    prediction, truth = (
        data.data.squeeze(0).cpu().numpy()
        for data in (output.pred_sem_seg, output.gt_sem_seg))
    counts.update(prediction, output.classes, truth)
    return counts
