# SPDX-License-Identifier: Apache-2.0
"""How far the stream is, and how long it will take."""
from __future__ import annotations

import time
from datetime import timedelta
from typing import Any, List, Optional

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmseg.registry import HOOKS
from mmseg_mile.structures import Task


@HOOKS.register_module()
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
        """Note that task ``index`` begins to train."""
        self._tasks, self._index = tasks, index
        self._started, self._earlier = time.perf_counter(), 0

    def before_train(self, runner: Runner) -> None:
        """Note how far a task is that was interrupted."""
        self._started, self._earlier = time.perf_counter(), runner.iter

    def after_stream_row(self,
                         runner: Runner,
                         seconds: float,
                         results: Any = None) -> None:
        """Note how long an evaluation row took."""
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
            f'{_clock(task)} left, stream: about {_clock(stream)} left')


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
