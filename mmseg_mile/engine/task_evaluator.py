# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a model on the tasks of a stream."""
from __future__ import annotations

import copy
import hashlib
import math
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import (Any, Callable, Dict, Iterable, List, Mapping, Optional,
                    Sequence)

import numpy as np
import torch
from mmengine.dist import all_gather_object, is_main_process
from mmengine.runner import Runner
from numpy.typing import ArrayLike
from torch.utils.flop_counter import FlopCounterMode

from mmseg_mile.evaluation.domain_iou import DomainIoU
from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.evaluation.routing_log import RoutedImage, image_name
from mmseg_mile.files import read_json, write_json
from mmseg_mile.methods.continual_segmentor import ContinualSegmentor
from mmseg_mile.structures import Task

Samples = List[Any]


@dataclass
class TaskScore:
    """Result of evaluating one task once.

    Args:
        routed (DomainIoU): With the experts that the gate chose.
        oracle (DomainIoU, optional): With the task's own expert; None if it
            has none.
        chosen (Counter): Images per chosen expert; empty without a gate.
        digest (str): SHA-256 over those of the oracle's label maps.
        images (list[RoutedImage]): Lines of the routing log, in the order
            of the dataset, whatever processes predicted them.
        routing_stats (Mapping[str, Any]): Of a method that routes inside
            the network, those of the main process.
    """
    routed: DomainIoU
    oracle: Optional[DomainIoU]
    chosen: Counter = field(default_factory=Counter)
    digest: str = ''
    images: List[RoutedImage] = field(default_factory=list)
    routing_stats: Mapping[str, Any] = field(default_factory=dict)

    def to_document(self) -> Dict[str, Any]:
        """As plain JSON values."""
        return dict(
            routed=self.routed.confusion.tolist(),
            oracle=self.oracle and self.oracle.confusion.tolist(),
            chosen=dict(self.chosen),
            digest=self.digest,
            images=[image.to_document() for image in self.images],
            routing_stats=self.routing_stats)

    @classmethod
    def from_document(cls, task: Task, document: Dict[str,
                                                      Any]) -> 'TaskScore':
        """The score that :meth:`to_document` gave, for the same task."""
        routed, oracle = (
            document[kind]
            and DomainIoU.from_confusion(task.eval_classes, document[kind])
            for kind in ('routed', 'oracle'))
        return cls(routed, oracle, Counter(document['chosen']),
                   document['digest'],
                   [RoutedImage.from_document(d)
                    for d in document['images']], document['routing_stats'])


class ImageLog:
    """Lines of the routing log for the images of one task in one row.

    Args:
        task (Task): The task.
        after (str): Name of the task that was learned last.
        data_root (str): Files are named relative to it.
    """

    def __init__(self, task: Task, after: str, data_root: str) -> None:
        kind = task.val_dataset.get('type', '')
        self._fields = dict(
            after=after,
            task=task.name,
            dataset=kind if isinstance(kind, str) else kind.__name__)
        self._root = data_root

    def entry(self, sample: Any, routed: DomainIoU,
              oracle: Optional[DomainIoU]) -> RoutedImage:
        """The line of one image, from its own counts.

        Args:
            sample (SegDataSample): The routed prediction.
            routed (DomainIoU): Its counts.
            oracle (DomainIoU, optional): Those of the own expert.
        """
        return RoutedImage(
            file=image_name(sample.get('img_path') or '', self._root),
            expert=sample.get('expert'),
            mixture=sample.get('mixture') or {},
            distances=sample.get('distances') or {},
            ood=sample.get('ood'),
            miou=routed.miou(),
            oracle_miou=None if oracle is None else oracle.miou(),
            sequence=sample.get('sequence'),
            areas=routed.areas(),
            **self._fields)


def evaluate_task(runner: Runner, model: ContinualSegmentor, task: Task,
                  loader: Iterable[dict], data_root: str,
                  after: str) -> TaskScore:
    """Score of a task, as routed and with the task's own expert.

    An image that was routed to its own expert is not predicted twice. The
    hooks' ``after_stream_val_iter`` sees each batch: ``data_samples`` as
    routed, ``oracle_samples`` with the task's own expert, which are the same
    objects where routing was right, or None if there is no such expert.

    Args:
        runner (Runner): Whose hooks are called.
        model (ContinualSegmentor): Left in eval mode.
        task (Task): Its ``eval_classes`` are those of the scores.
        loader (Iterable[dict]): Its validation images.
        data_root (str): Files are named relative to it.
        after (str): Name of the task that was learned last.
    """
    model.eval()
    has_expert = task.name in model.expert_names
    routed, oracle = DomainIoU(task.eval_classes), DomainIoU(task.eval_classes)
    score = TaskScore(routed, oracle if has_expert else None)
    digests: List[bytes] = []
    log = ImageLog(task, after, data_root)
    # those of earlier predictions are not of this task
    model.routing_stats()
    for batch in loader:
        for sample in batch['data_samples']:
            sample.set_metainfo(dict(task=task.name))
        untouched = dict(
            batch, data_samples=copy.deepcopy(batch['data_samples']))
        outputs = _predict(model, batch)
        counts = _update(routed, outputs)
        score.chosen.update(o.expert for o in outputs if o.expert is not None)
        own: Optional[Samples] = None
        own_counts: Sequence[Optional[DomainIoU]] = [None] * len(outputs)
        if has_expert:
            own = _with_own_expert(model, task, untouched, outputs)
            own_counts = _update(oracle, own)
            digests += [
                hashlib.sha256(_label_map(o.pred_sem_seg).tobytes()).digest()
                for o in own
            ]
        score.images += map(log.entry, outputs, counts, own_counts)
        runner.call_hook(
            'after_stream_val_iter',
            task=task,
            data_samples=outputs,
            oracle_samples=own)
    score.routing_stats = model.routing_stats()
    return _gather(score, digests)


def evaluate_forced(model: ContinualSegmentor, task: Task,
                    loader: Iterable[dict], expert: str) -> float:
    """mIoU in per cent of a task with one expert forced on all images."""
    model.eval()
    score = DomainIoU(task.eval_classes)
    with model.forced(expert):
        for batch in loader:
            _update(score, _predict(model, batch))
    return _merged(all_gather_object(score)).miou()


@torch.no_grad()
def _predict(model: ContinualSegmentor, batch: Dict[str, Any]) -> Samples:
    return model.test_step(batch)


def _with_own_expert(model: ContinualSegmentor, task: Task,
                     batch: Dict[str, Any], routed: Samples) -> Samples:
    """The batch as the task's own expert predicts it."""
    own = {task.name: 1.0}
    wrong = [
        i for i, o in enumerate(routed)
        if o.get('mixture', {o.expert: 1.0}) != own
    ]
    outputs = list(routed)
    if wrong:
        again = dict(
            inputs=[batch['inputs'][i] for i in wrong],
            data_samples=[batch['data_samples'][i] for i in wrong])
        with model.forced(task.name):
            for index, output in zip(wrong, _predict(model, again)):
                outputs[index] = output
    return outputs


def _label_map(pixel_data: Any) -> np.ndarray:
    """(H, W) label map."""
    return pixel_data.data.squeeze(0).cpu().numpy()


def _update(score: DomainIoU, outputs: Samples) -> List[DomainIoU]:
    """Count the predictions; returns the counts of each image alone."""
    parts = [DomainIoU(score.classes) for _ in outputs]
    for part, output in zip(parts, outputs):
        part.update(
            _label_map(output.pred_sem_seg), output.classes,
            _label_map(output.gt_sem_seg))
    _merged([score, *parts])
    return parts


def _merged(parts: Sequence[DomainIoU]) -> DomainIoU:
    """The first, with the counts of the others."""
    for other in parts[1:]:
        parts[0].merge(other)
    return parts[0]


def _gather(score: TaskScore, digests: List[bytes]) -> TaskScore:
    """The scores of all processes' images as one."""
    scores, shares = zip(*all_gather_object((score, digests)))

    def in_order(parts: Iterable[List[Any]]) -> List[Any]:
        # as DefaultSampler deals them out; the last ones may have one less
        dealt = chain.from_iterable(zip_longest(*parts))
        return [item for item in dealt if item is not None]

    total = TaskScore(
        _merged([s.routed for s in scores]),
        score.oracle and _merged([s.oracle for s in scores]),
        sum((s.chosen for s in scores), Counter()),
        images=in_order(s.images for s in scores),
        routing_stats=scores[0].routing_stats)
    if total.oracle is not None:
        joined = b''.join(in_order(shares))
        total.digest = hashlib.sha256(joined).hexdigest()
    return total


def cross_expert_scores(path: Path, tasks: Sequence[str],
                        digests: Mapping[str, str], own: ArrayLike,
                        evaluate: Callable[[str, str], float]) -> np.ndarray:
    """(T, T) mIoU in per cent of every task (row) with every expert.

    They are kept in a file that grows by pairs. An expert is identified by
    the digest of its label maps on its own task; pairs of experts and tasks
    that are as they were are not evaluated again.

    Args:
        path (Path): The file.
        tasks (Sequence[str]): Names of the T tasks.
        digests (Mapping[str, str]): Of their oracle label maps.
        own (ArrayLike): (T,) mIoU of each task with its own expert.
        evaluate (Callable): mIoU in per cent of a task with an expert.
    """
    matrix = np.full((len(tasks), ) * 2, np.nan)
    if path.exists():
        known = read_json(path)
        same = [
            name for name in tasks if name in known['tasks']
            and known['digests'].get(name) == digests.get(name)
        ]
        new, old = ([names.index(name) for name in same]
                    for names in (list(tasks), known['tasks']))
        miou = np.array(known['miou'], dtype=float)
        matrix[np.ix_(new, new)] = miou[np.ix_(old, old)]
    np.fill_diagonal(matrix, own)

    def save() -> None:
        known = dict(tasks=list(tasks), miou=matrix.tolist(), digests=digests)
        if is_main_process():
            write_json(path, known)

    save()
    missing = np.isnan(matrix) & ~np.eye(len(tasks), dtype=bool)
    for row, column in np.argwhere(missing):
        matrix[row, column] = evaluate(tasks[row], tasks[column])
        save()
    return matrix


def setting_of(model: ContinualSegmentor,
               rehearsal: Optional[Mapping[str, Any]]) -> Dict[str, Any]:
    """Help that a method gets: the ``setting`` of ``results.json``."""
    gate = model.gate
    has_label = model.needs_task_label or (gate is not None
                                           and gate.needs_task_label)
    old_images = 'none'
    if rehearsal is not None:
        is_buffer = rehearsal['tasks'] == 'seen' and rehearsal.get(
            'images_per_task') is not None
        old_images = 'buffer' if is_buffer else 'all'
    return dict(task_label_at_test=has_label, old_images=old_images)


def record_row(results: StreamResults, index: int, tasks: Sequence[Task],
               scores: Sequence[TaskScore],
               model: ContinualSegmentor) -> Dict[str, str]:
    """Enter the scores of all tasks after learning task ``index``.

    Args:
        results (StreamResults): Changed in place.
        index (int): The row.
        tasks (Sequence[Task]): Of the stream.
        scores (Sequence[TaskScore]): One per task.
        model (ContinualSegmentor): That predicted.

    Returns:
        dict[str, str]: Digests of the oracle's label maps by task.
    """
    for column, (task, score) in enumerate(zip(tasks, scores)):
        for kind, iou in (('routed', score.routed), ('oracle', score.oracle)):
            if iou is not None:
                results.set_miou(kind, index, column, iou.miou())
                if column <= index:
                    results.set_class_iou(kind, task.name, iou.class_iou())
    names = [task.name for task in tasks[:index + 1]]
    learned = scores[:index + 1]
    confusion = [[score.chosen[name] for name in names] for score in learned]
    if np.sum(confusion):
        # one that got no expert is not routed right
        total = sum(len(score.images) for score in learned)
        results.set_gate(float(np.trace(confusion) / total), confusion)
    gate = model.gate
    distances = gate.prototype_distances() if gate else None
    if gate is not None and distances is not None:
        order = [gate.expert_names.index(name) for name in names]
        results.set_prototype_distances(distances[order][:,
                                                         order].cpu().numpy())
    stats = {t.name: s.routing_stats for t, s in zip(tasks, scores)}
    results.routing_stats[index] = stats if any(stats.values()) else None
    results.compute_scores()
    return {t.name: s.digest for t, s in zip(tasks, scores) if s.digest}


def record_cost(results: StreamResults, index: int, seconds: float,
                model: ContinualSegmentor, library: Path,
                image_bytes: int) -> None:
    """Enter what learning task ``index`` took, and what is kept after it.

    Args:
        results (StreamResults): Changed in place.
        index (int): Position of the task.
        seconds (float): That its training took.
        model (ContinualSegmentor): That has learned it.
        library (Path): Where it was saved.
        image_bytes (int): Of the images that must be kept.
    """
    cost = results.cost
    cost.base_params = sum(p.numel() for p in model.backbone.parameters())
    kept = dict(params=math.nan, bytes=math.nan)
    if is_main_process():
        # the files are there once the main process has written them
        experts = model.expert_costs(library)
        cost.set_experts(experts, results.tasks)
        kept.update(model.kept_cost(experts))
    cost.set_task(index, seconds, kept['params'], kept['bytes'] + image_bytes)


@torch.no_grad()
def count_macs(model: ContinualSegmentor, task: Task,
               loader: Iterable[dict]) -> Optional[int]:
    """Multiply-adds of predicting one image, gate and head included.

    Matrix products and convolutions count, as torch's counter sees them, in
    the second prediction: the first one merges the expert's weights.

    Args:
        model (ContinualSegmentor): Left in eval mode.
        task (Task): That the images belong to.
        loader (Iterable[dict]): Test-pipeline images; the first one is used,
            without any the result is None.
    """
    model.eval()
    for batch in islice(loader, 1):
        one: Dict[str, Any] = dict(
            inputs=batch['inputs'][:1], data_samples=batch['data_samples'][:1])
        # some methods have to be told
        one['data_samples'][0].set_metainfo(dict(task=task.name))
        model.test_step(copy.deepcopy(one))
        with FlopCounterMode(display=False) as counter:
            model.test_step(copy.deepcopy(one))
        return counter.get_total_flops() // 2
    return None
