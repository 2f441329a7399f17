# SPDX-License-Identifier: Apache-2.0
"""The scores of a stream for TensorBoard and the like."""
from __future__ import annotations

import math
from typing import Dict

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmseg.registry import HOOKS
from mmseg_mile.evaluation import StreamResults


@HOOKS.register_module()
class StreamScalarsHook(Hook):
    """Sends the scores of each finished row to the runner's visualizer.

    The visualizer hands them to every back-end of ``vis_backends``. The
    step is the number of tasks learned so far, 1 after the first. What was
    not measured, such as a gate's accuracy without a gate, is left out:

    - ``stream/miou_routed/<task>``, ``stream/miou_oracle/<task>``: per cent,
      of each task learned so far;
    - ``stream/average_seen``, ``stream/average_seen_oracle``: their means;
    - ``stream/forgetting``, ``stream/backward_transfer``: points, from the
      second task on;
    - ``stream/gate_accuracy``: per cent of the images of learned tasks;
    - ``stream/train_seconds``, ``stream/row_seconds``: of the task learned
      last and of the evaluation after it.

    A run that is resumed sends the rows that it evaluates; what an earlier
    process sent is not sent again. Only a run that is killed between the
    end of a row and the sending, a moment, leaves a gap: its numbers are in
    ``results.json``. ``WandbVisBackend`` takes no step and counts its own.
    """

    def __init__(self) -> None:
        self._index = 0

    def before_stream_row(self, runner: Runner, task_index: int) -> None:
        """Note which row begins."""
        self._index = task_index

    def after_stream_row(self, runner: Runner, seconds: float,
                         results: StreamResults) -> None:
        """Send the scalars of the row.

        Args:
            runner (Runner): Its visualizer gets them.
            seconds (float): That the evaluation took.
            results (StreamResults): Up to this row.
        """
        scalars = dict(
            row_scalars(results, self._index),
            **{'stream/row_seconds': seconds})
        runner.visualizer.add_scalars(scalars, step=self._index + 1)


def row_scalars(results: StreamResults, row: int) -> Dict[str, float]:
    """What is known once ``row``, the last finished one, is evaluated."""
    found: Dict[str, float] = {}
    for kind, mean in (('routed', 'average_seen'), ('oracle',
                                                    'average_seen_oracle')):
        scores = results.miou[kind][row, :row + 1]
        for task, score in zip(results.tasks, scores):
            found[f'miou_{kind}/{task}'] = score
        found[mean] = scores.mean()
    for name in ('forgetting', 'backward_transfer'):
        found[name] = results.scores[name]
    found['gate_accuracy'] = 100 * results.gate_accuracy
    found['train_seconds'] = results.cost.train_seconds[row]
    # back-ends take plain numbers, and a file of JSON no NaN
    return {
        f'stream/{name}': float(value)
        for name, value in found.items() if not math.isnan(value)
    }
