# SPDX-License-Identifier: Apache-2.0
"""Many ways to predict the images of a task, each distinct one once."""
from __future__ import annotations

from collections import Counter
from typing import (Any, Callable, Dict, Iterable, List, NamedTuple, Optional,
                    Sequence, Tuple)

import torch
from torch import Tensor

from mmseg_mile.evaluation import DomainIoU
from mmseg_mile.evaluation.left_out_score import LeftOutImage, LeftOutScore
from mmseg_mile.gates.base_gate import BaseGate, apply_ood_policy
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from mmseg_mile.structures import Routing, Task
from .distinct_predictions import Ways, predict_ways, way_of
from .left_out_gates import LeftOutMethod
from .task_evaluator import ImageLog


class LeftOutCell(NamedTuple):
    """A method without some experts.

    Args:
        removed (tuple[str]): Experts that are not there.
        method (LeftOutMethod): How the others are used.
        gate (BaseGate): Knows the others only.
    """
    removed: Tuple[str, ...]
    method: LeftOutMethod
    gate: BaseGate

    def route(self, embeddings: Tensor) -> Routing:
        """The routing of (B, D) embedded images."""
        routing = self.gate.route(embeddings, [None] * len(embeddings))
        return apply_ood_policy(routing, self.method.ood_policy)


class LeftOutResult(NamedTuple):
    """What a cell scored, and each image of it."""
    score: LeftOutScore
    images: List[LeftOutImage]


def evaluate_cells(model: ExpertSegmentor, task: Task, loader: Iterable[dict],
                   oracle: LeftOutCell, cells: Sequence[LeftOutCell],
                   log: ImageLog, seed: int,
                   progress: Callable[[int], None]) -> List[LeftOutResult]:
    """Score a task in every cell, in one pass over its images.

    Images are embedded once. Cells that come to the same mixture for an
    image share its prediction: the nearest expert, say, is forwarded once,
    whatever is removed and whichever policy chose it.

    Args:
        model (ExpertSegmentor): Has all experts.
        task (Task): The target.
        loader (Iterable[dict]): Its validation images.
        oracle (LeftOutCell): Its own expert, which each image is compared
            with.
        cells (Sequence[LeftOutCell]): Others.
        log (ImageLog): Of the target.
        seed (int): Of the run, for the log.
        progress (Callable): Told after each batch how many images are done.

    Returns:
        list[LeftOutResult]: Of the oracle, then of the cells.
    """
    model.eval()
    tallies = [_Tally(task, cell, log, seed) for cell in (oracle, *cells)]
    done = 0
    for batch in loader:
        embeddings = _embed(model, batch)
        ways: Ways = {}
        chosen = []
        for tally in tallies:
            routing = tally.cell.route(embeddings)
            chosen.append([
                way_of(model, routing, index, tally.cell.method.fusion, ways)
                for index in range(len(embeddings))
            ])
            tally.routing = routing
        counts = predict_ways(model, task, batch, ways)
        for index, sample in enumerate(batch['data_samples']):
            own = counts[chosen[0][index]]  # type: ignore[index]
            for tally, keys in zip(tallies, chosen):
                key = keys[index]
                tally.add(index, sample, None if key is None else counts[key],
                          own)
        done += len(embeddings)
        progress(done)
    return [tally.result() for tally in tallies]


class _Tally:
    """Adds up the images of a cell."""

    def __init__(self, task: Task, cell: LeftOutCell, log: ImageLog,
                 seed: int) -> None:
        self.cell = cell
        self.routing: Optional[Routing] = None
        self._task, self._log, self._seed = task, log, seed
        self._total = DomainIoU(task.classes)
        self._counts: Counter = Counter(images=0, answered=0, flagged=0)
        self._images: List[LeftOutImage] = []

    def add(self, index: int, sample: Any, counts: Optional[DomainIoU],
            own: DomainIoU) -> None:
        """One image of the batch; without counts it got no prediction."""
        assert self.routing is not None
        routing, cell = self.routing, self.cell
        routed = counts or DomainIoU(self._task.classes)
        self._total.merge(routed)
        flagged = bool(routing.ood[index])
        self._counts.update(
            images=1, answered=int(counts is not None), flagged=int(flagged))
        mixture = routing.mixture(index)
        line = self._log.entry(
            dict(
                img_path=sample.get('img_path'),
                expert=routing.top_expert(index) if mixture else None,
                mixture=mixture,
                distances=dict(
                    zip(routing.expert_names,
                        routing.distances[index].tolist())),
                ood=flagged), routed, own)
        measured, answered = routing.ood_score, counts is not None
        self._images.append(
            LeftOutImage(self._seed, cell.method.name, cell.removed,
                         not answered, line,
                         None if measured is None else float(measured[index])))

    def result(self) -> LeftOutResult:
        """All of them."""
        score = LeftOutScore(
            self._task.name,
            self.cell.removed,
            self.cell.method.name,
            miou=self._total.miou(),
            class_iou=self._total.class_iou(),
            **self._counts)
        return LeftOutResult(score, self._images)


@torch.no_grad()
def _embed(model: ExpertSegmentor, batch: Dict[str, Any]) -> Tensor:
    images = model.data_preprocessor(
        dict(inputs=list(batch['inputs'])), False)['inputs']
    return model.embedder(model.backbone, images)
