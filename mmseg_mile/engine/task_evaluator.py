# SPDX-License-Identifier: Apache-2.0
"""One model on the validation images of one task."""
from __future__ import annotations

import copy
import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, List, Optional

import numpy as np
import torch
from mmengine.dist import all_gather_object
from mmengine.runner import Runner

from mmseg_mile.evaluation import DomainIoU, RoutedImage
from mmseg_mile.models import ContinualSegmentor
from mmseg_mile.structures import Task
from mmseg_mile.structures.interleaving import interleave
from .image_log import ImageLog


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
            and DomainIoU.from_confusion(task.classes, document[kind])
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
        task (Task): Its classes are the label space of the scores.
        loader (Iterable[dict]): Its validation images.
        data_root (str): Files are named relative to it.
        after (str): Name of the task that was learned last.

    Returns:
        TaskScore: Of all processes together.
    """
    model.eval()
    has_expert = task.name in model.expert_names
    routed, oracle = DomainIoU(task.classes), DomainIoU(task.classes)
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
    score = DomainIoU(task.classes)
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
