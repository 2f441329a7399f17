# SPDX-License-Identifier: Apache-2.0
"""From what a task left and scored to the results of a run."""
from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence

import numpy as np
from mmengine.dist import is_main_process

from mmseg_mile.evaluation import StreamResults
from mmseg_mile.models import BaseGate, ContinualSegmentor
from mmseg_mile.structures import Task
from .task_evaluator import TaskScore


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


def enter_row(results: StreamResults,
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


def enter_cost(results: StreamResults, index: int, seconds: float,
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
