# SPDX-License-Identifier: Apache-2.0
"""One model on the validation images of one task."""
from __future__ import annotations

import copy
import hashlib
import math
import os.path as osp
import shutil
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePath
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
from mmseg_mile.evaluation.routing_log import RoutedImage
from mmseg_mile.files import read_json, write_json
from mmseg_mile.gates.base_gate import BaseGate
from mmseg_mile.methods.continual_segmentor import ContinualSegmentor
from mmseg_mile.structures import Task
from mmseg_mile.structures.interleaving import interleave


class ImageLog:
    """Describes the images of one task in one evaluation row.

    Args:
        task (Task): The task.
        after (str): Name of the task that was learned last.
        data_root (str): Files are named relative to it.
    """

    def __init__(self, task: Task, after: str, data_root: str) -> None:
        self._task = task
        self._after = after
        self._root = osp.abspath(data_root)

    def entry(self, sample: Any, routed: DomainIoU,
              oracle: Optional[DomainIoU]) -> RoutedImage:
        """The line of one image.

        Args:
            sample (SegDataSample): The routed prediction.
            routed (DomainIoU): Counts of this image alone.
            oracle (DomainIoU, optional): The same with the own expert.
        """
        return RoutedImage(
            after=self._after,
            task=self._task.name,
            dataset=_type_of(self._task.val_dataset),
            file=self._name(sample.get('img_path') or ''),
            expert=sample.get('expert'),
            mixture=sample.get('mixture') or {},
            distances=sample.get('distances') or {},
            ood=sample.get('ood'),
            miou=routed.miou(),
            oracle_miou=None if oracle is None else oracle.miou())

    def _name(self, path: str) -> str:
        absolute = osp.abspath(path)
        below = osp.commonpath([absolute, self._root]) == self._root
        name = osp.relpath(absolute, self._root) if path and below else path
        # a name need not be UTF-8, the log is
        known = name.encode('utf-8', 'backslashreplace').decode()
        return PurePath(known).as_posix() if known else ''


def _type_of(config: Dict[str, Any]) -> str:
    kind = config.get('type', '')
    return kind if isinstance(kind, str) else kind.__name__


@dataclass
class TaskScore:
    """What one evaluation of a task found.

    Args:
        routed (DomainIoU): With the experts that the gate chose.
        oracle (DomainIoU, optional): With the task's own expert; None if it
            has none.
        chosen (Counter): Images per chosen expert; empty without a gate.
        digest (str): SHA-256 over those of the oracle's label maps, in the
            dataset's order, whatever processes predicted them.
        images (list[RoutedImage]): Lines of the routing log, in the
            dataset's order.
    """
    routed: DomainIoU
    oracle: Optional[DomainIoU]
    chosen: Counter = field(default_factory=Counter)
    digest: str = ''
    images: List[RoutedImage] = field(default_factory=list)

    def to_document(self) -> Dict[str, Any]:
        """As plain JSON values."""
        return dict(
            routed=self.routed.confusion.tolist(),
            oracle=self.oracle and self.oracle.confusion.tolist(),
            chosen=dict(self.chosen),
            digest=self.digest,
            images=[image.to_document() for image in self.images])

    @classmethod
    def from_document(cls, task: Task, document: Dict[str,
                                                      Any]) -> 'TaskScore':
        """What :meth:`to_document` gave, for the same task."""
        routed, oracle = (
            document[kind]
            and DomainIoU.from_confusion(task.eval_classes, document[kind])
            for kind in ('routed', 'oracle'))
        return cls(routed, oracle, Counter(document['chosen']),
                   document['digest'],
                   [RoutedImage.from_document(d) for d in document['images']])


def evaluate_task(runner: Runner, model: ContinualSegmentor, task: Task,
                  loader: Iterable[dict], data_root: str,
                  after: str) -> TaskScore:
    """Predict every image as routed, and with the task's own expert.

    An image that was routed to its own expert is not predicted twice. The
    hooks' ``after_stream_val_iter`` sees each batch: ``data_samples`` as
    routed, ``oracle_samples`` with the task's own expert, which are the same
    objects where routing was right, or None if there is no such expert.

    Args:
        runner (Runner): Whose hooks are called.
        model (ContinualSegmentor): In any mode; left in eval mode.
        task (Task): Its ``eval_classes`` are those of the scores.
        loader (Iterable[dict]): Its validation images.
        data_root (str): Files are named relative to it.
        after (str): Name of the task that was learned last.

    Returns:
        TaskScore: Of all processes together.
    """
    model.eval()
    has_expert = task.name in model.expert_names
    routed, oracle = DomainIoU(task.eval_classes), DomainIoU(task.eval_classes)
    score = TaskScore(routed, oracle if has_expert else None)
    digests: List[bytes] = []
    log = ImageLog(task, after, data_root)
    for batch in loader:
        for sample in batch['data_samples']:
            sample.set_metainfo(dict(task=task.name))
        untouched = copy.copy(batch)
        untouched['data_samples'] = [
            copy.deepcopy(s) for s in batch['data_samples']
        ]
        outputs = _predict(model, batch)
        counts = _update(routed, outputs)
        score.chosen.update(o.expert for o in outputs if o.expert is not None)
        own, own_counts = None, [None] * len(outputs)
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
    return _gather(score, digests)


def evaluate_forced(model: ContinualSegmentor, task: Task,
                    loader: Iterable[dict], expert: str) -> float:
    """mIoU in per cent of a task with one expert forced on all images."""
    model.eval()
    score = DomainIoU(task.eval_classes)
    with model.forced(expert):
        for batch in loader:
            _update(score, _predict(model, batch))
    parts = all_gather_object(score)
    for other in parts[1:]:
        parts[0].merge(other)
    return parts[0].miou()


@torch.no_grad()
def _predict(model: ContinualSegmentor, batch: Dict[str, Any]) -> List[Any]:
    return model.test_step(batch)


def _with_own_expert(model: ContinualSegmentor, task: Task,
                     batch: Dict[str, Any], routed: List[Any]) -> List[Any]:
    """The batch as the task's own expert sees it."""
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


def _update(score: DomainIoU, outputs: List[Any]) -> List[Any]:
    """Count the predictions; returns the counts of each image alone."""
    parts = []
    for output in outputs:
        part = DomainIoU(score.classes)
        part.update(
            _label_map(output.pred_sem_seg), output.classes,
            _label_map(output.gt_sem_seg))
        score.merge(part)
        parts.append(part)
    return parts


def _gather(score: TaskScore, digests: List[bytes]) -> TaskScore:
    """The scores of all processes' images as one."""
    scores, shares = zip(*all_gather_object((score, digests)))
    total = scores[0]
    for other in scores[1:]:
        total.routed.merge(other.routed)
        if total.oracle is not None:
            total.oracle.merge(other.oracle)
        total.chosen.update(other.chosen)
    total.images = interleave([s.images for s in scores])
    if total.oracle is not None:
        joined = b''.join(interleave(shares))
        total.digest = hashlib.sha256(joined).hexdigest()
    return total


Evaluate = Callable[[Task], TaskScore]


class RowCache:
    """The score of each task, on disk as soon as it is known.

    Args:
        folder (Path): Of the row in progress; gone when it is complete.
        row (str): Name of the task that was learned last.
    """

    def __init__(self, folder: Path, row: str) -> None:
        self.folder = folder
        self.row = row

    def score(self, task: Task, evaluate: Evaluate) -> TaskScore:
        """The kept score of a task, or else a new one.

        Args:
            task (Task): The task.
            evaluate (Callable): Scores it.
        """
        path = self.folder / f'{task.name}.json'
        if path.exists():
            kept = read_json(path)
            if kept['row'] == self.row:
                return TaskScore.from_document(task, kept['score'])
        score = evaluate(task)
        if is_main_process():
            write_json(path, dict(row=self.row, score=score.to_document()))
        return score

    def discard(self) -> None:
        """The row is complete, and kept elsewhere."""
        if is_main_process():
            shutil.rmtree(self.folder, ignore_errors=True)


def setting_of(model: ContinualSegmentor,
               rehearsal: Optional[Mapping[str, Any]]) -> Dict[str, Any]:
    """What a method is given: the ``setting`` of ``results.json``.

    Args:
        model (ContinualSegmentor): The method.
        rehearsal (Mapping[str, Any], optional): ``train_cfg.rehearsal``.
    """
    gate = model.gate
    told = model.needs_task_label or (gate is not None
                                      and gate.needs_task_label)
    old_images = 'none'
    if rehearsal is not None:
        some = rehearsal['tasks'] == 'seen' and rehearsal.get(
            'images_per_task') is not None
        old_images = 'buffer' if some else 'all'
    return dict(task_label_at_test=told, old_images=old_images)


def record_row(results: StreamResults,
               index: int,
               tasks: Sequence[Task],
               scores: Sequence[TaskScore],
               gate: Optional[BaseGate] = None) -> Dict[str, str]:
    """Note the scores of all tasks after learning task ``index``.

    Args:
        results (StreamResults): Changed in place.
        index (int): The row.
        tasks (Sequence[Task]): T tasks of the stream.
        scores (Sequence[TaskScore]): One per task.
        gate (BaseGate, optional): That routed. Defaults to None.

    Returns:
        dict[str, str]: Digests of the oracle's label maps by task.
    """
    for column, score in enumerate(scores):
        results.set_miou('routed', index, column, score.routed.miou())
        if score.oracle is not None:
            results.set_miou('oracle', index, column, score.oracle.miou())
    learned = list(zip(tasks, scores))[:index + 1]
    _enter_gate(results, [t.name for t, _ in learned], [s for _, s in learned])
    for task, score in learned:
        results.set_class_iou('routed', task.name, score.routed.class_iou())
        if score.oracle is not None:
            results.set_class_iou('oracle', task.name,
                                  score.oracle.class_iou())
    distances = gate.prototype_distances() if gate else None
    if gate is not None and distances is not None:
        order = [gate.expert_names.index(task.name) for task, _ in learned]
        results.set_prototype_distances(distances[order][:,
                                                         order].cpu().numpy())
    results.compute_scores()
    return {t.name: s.digest for t, s in zip(tasks, scores) if s.digest}


def record_cost(results: StreamResults, index: int, seconds: float,
                model: ContinualSegmentor, library: Path,
                image_bytes: int) -> None:
    """Note what learning task ``index`` took, and what is kept after it.

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
    if is_main_process():
        # the files are there once the main process has written them
        experts = model.expert_costs(library)
        cost.set_experts(experts, results.tasks)
        kept = model.kept_cost(experts)
        cost.set_task(index, seconds, kept['params'],
                      kept['bytes'] + image_bytes)
    else:
        cost.set_task(index, seconds, math.nan, math.nan)


def _enter_gate(results: StreamResults, names: Sequence[str],
                scores: Sequence[TaskScore]) -> None:
    confusion = [[s.chosen[n] for n in names] for s in scores]
    if np.sum(confusion):
        # one that got no expert is not routed right
        total = sum(len(score.images) for score in scores)
        results.set_gate(float(np.trace(confusion) / total), confusion)


class CrossScores:
    """A (T, T) matrix of mIoU in a file that grows by each pair.

    Rows are tasks, columns experts. What an expert is, is told by the digest
    of its label maps on its own task: pairs of experts and tasks that are
    as they were are not evaluated again.

    Args:
        path (Path): The file.
        tasks (Sequence[str]): Names of the T tasks.
        digests (dict[str, str]): Of their oracle label maps.
    """

    def __init__(self, path: Path, tasks: Sequence[str],
                 digests: Dict[str, str]) -> None:
        self.path = path
        self.tasks = list(tasks)
        self.digests = digests
        self.matrix = np.full((len(tasks), ) * 2, np.nan)
        if path.exists():
            self._take_up(read_json(path))

    def fill_forced(self, model: ContinualSegmentor, tasks: Sequence[Task],
                    loader: Callable[[Task], Iterable[dict]],
                    own: ArrayLike) -> np.ndarray:
        """Evaluate what is missing with a model's experts.

        Args:
            model (ContinualSegmentor): Has the experts.
            tasks (Sequence[Task]): Of the stream.
            loader (Callable): Validation images of a task.
            own (ArrayLike): (T,) mIoU of each task with its own expert.

        Returns:
            np.ndarray: (T, T) mIoU in per cent.
        """
        by_name = {task.name: task for task in tasks}
        return self.fill(
            lambda task, expert: evaluate_forced(model, by_name[
                task], loader(by_name[task]), expert), own)

    def fill(self, evaluate: Callable[[str, str], float],
             own: ArrayLike) -> np.ndarray:
        """Evaluate what is missing.

        Args:
            evaluate (Callable): mIoU in per cent of a task with an expert.
            own (ArrayLike): (T,) of each task with its own expert.

        Returns:
            np.ndarray: (T, T) mIoU in per cent.
        """
        np.fill_diagonal(self.matrix, own)
        for row, task in enumerate(self.tasks):
            for column, expert in enumerate(self.tasks):
                if np.isnan(self.matrix[row, column]) and row != column:
                    self.matrix[row, column] = evaluate(task, expert)
                    self._save()
        self._save()
        return self.matrix

    def _save(self) -> None:
        if is_main_process():
            write_json(
                self.path,
                dict(
                    tasks=self.tasks,
                    miou=self.matrix.tolist(),
                    digests=self.digests))

    def _take_up(self, known: Dict) -> None:
        miou = np.array(known['miou'], dtype=float)
        same = {
            name: known['tasks'].index(name)
            for name in self.tasks if name in known['tasks']
            and known['digests'].get(name) == self.digests.get(name)
        }
        for row, task in enumerate(self.tasks):
            for column, expert in enumerate(self.tasks):
                if task in same and expert in same:
                    self.matrix[row, column] = miou[same[task], same[expert]]


@torch.no_grad()
def count_macs(model: ContinualSegmentor, task: Task,
               loader: Iterable[dict]) -> Optional[int]:
    """Multiply-adds of predicting one image, whatever gates and heads do.

    Matrix products and convolutions count, as torch's counter sees them. An
    expert's weights are merged before: the image is predicted twice, and
    the second time counts.

    Args:
        model (ContinualSegmentor): In any mode; left in eval mode.
        task (Task): That the images belong to.
        loader (Iterable[dict]): Test-pipeline images; the first one is used.

    Returns:
        int | None: None if this process has no image.
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
