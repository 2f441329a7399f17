# SPDX-License-Identifier: Apache-2.0
"""Hooks that watch a stream: finite loss, progress, scalars."""
from __future__ import annotations

import math
import time
from datetime import timedelta
from typing import Any, Dict, List, Optional

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmseg.registry import HOOKS
from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.structures import Task
from .snapshot import divergence


class FiniteLossHook(Hook):
    """Raises when the loss is NaN or infinite.

    Args:
        interval (int): Iterations between two checks; reading the loss
            waits for a GPU. Defaults to 10.
    """

    def __init__(self, interval: int = 10) -> None:
        self.interval = interval

    def after_train_iter(self,
                         runner: Runner,
                         batch_idx: int,
                         data_batch: Any = None,
                         outputs: Optional[dict] = None) -> None:
        """Check the total loss.

        Raises:
            FloatingPointError: If it is not finite; says how to go on.
        """
        if not (self.every_n_train_iters(runner, self.interval)
                or self.is_last_train_iter(runner)):
            return
        loss = (outputs or {}).get('loss')
        if loss is not None and not torch.isfinite(loss).all():
            raise divergence(f'the loss is {loss.item()}', runner.iter + 1)


class StreamProgressHook(Hook):
    """Logs the time left for the task and for the stream.

    The stream's estimate counts the training that is left, at the speed of
    the present task, and the evaluation rows that are left, at the time of
    the last one.

    Args:
        interval (int): Iterations between two lines. Defaults to 50.
    """

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval
        self._tasks: List[Task] = []
        self._index = 0
        self._started = 0.0
        self._earlier = 0
        self._row_seconds = 0.0

    def before_stream_task(self, runner: Runner, tasks: List[Task],
                           index: int) -> None:
        """Note the task that begins to train."""
        self._tasks, self._index = tasks, index

    def before_train(self, runner: Runner) -> None:
        """Start the clock, behind the iterations of an earlier process."""
        self._started, self._earlier = time.perf_counter(), runner.iter

    def after_stream_row(self,
                         runner: Runner,
                         seconds: float,
                         results: Any = None) -> None:
        """Note the duration of an evaluation row."""
        self._row_seconds = seconds

    def after_train_iter(self,
                         runner: Runner,
                         batch_idx: int,
                         data_batch: Any = None,
                         outputs: Optional[dict] = None) -> None:
        """Log a line every ``interval`` iterations."""
        if not self._tasks or not self.every_n_train_iters(
                runner, self.interval):
            return
        done = batch_idx + 1
        pace = (time.perf_counter() - self._started) / (done - self._earlier)
        task = pace * (runner.max_iters - done)
        later = self._tasks[self._index + 1:]
        stream = task + pace * sum(t.max_iters for t in later) + (
            self._row_seconds * (1 + len(later)))
        name = self._tasks[self._index].name
        runner.logger.info(
            f'task {self._index + 1} of {len(self._tasks)} ({name}): '
            f'{timedelta(seconds=round(task))} left, stream: about '
            f'{timedelta(seconds=round(stream))} left')


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
        self._row = 0

    def before_stream_row(self, runner: Runner, task_index: int) -> None:
        """Note the row that begins."""
        self._row = task_index

    def after_stream_row(self, runner: Runner, seconds: float,
                         results: StreamResults) -> None:
        """Send the scalars of the row.

        Args:
            runner (Runner): Its visualizer gets them.
            seconds (float): That the evaluation took.
            results (StreamResults): Up to this row.
        """
        scalars = dict(
            row_scalars(results, self._row), **{'stream/row_seconds': seconds})
        runner.visualizer.add_scalars(scalars, step=self._row + 1)


def row_scalars(results: StreamResults, row: int) -> Dict[str, float]:
    """Scores of ``row``, the last finished one, by the names above."""
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
