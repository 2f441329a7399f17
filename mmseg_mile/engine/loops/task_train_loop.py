# SPDX-License-Identifier: Apache-2.0
"""mmengine's iteration loop, kept at intervals."""
from __future__ import annotations

import math
import time
from typing import Any, Dict, Optional, Sequence

from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from ..random_state import set_random_state
from ..task_snapshot import TaskSnapshot


class TaskTrainLoop(IterBasedTrainLoop):
    """Trains one task, from its beginning or from its snapshot.

    Args:
        runner (Runner): Its optimizer and schedulers are the task's.
        model (nn.Module): The runner's, unwrapped.
        dataloader (DataLoader): Of a ``PositionedSampler``.
        max_iters (int): Iterations of the task.
        snapshot (TaskSnapshot): Taken every ``interval`` iterations.
        interval (int): Iterations.
    """

    def __init__(self, runner: Runner, model: nn.Module,
                 dataloader: DataLoader, max_iters: int,
                 snapshot: TaskSnapshot, interval: int) -> None:
        super().__init__(
            runner,
            dataloader,
            max_iters=max_iters,
            val_interval=max_iters + 1)
        self._bare_model = model
        self._snapshot = snapshot
        self._interval = interval
        self._earlier_seconds = 0.0
        self._started = time.perf_counter()
        self._random: Optional[Dict[str, Any]] = None

    def resume(self) -> None:
        """Take up the snapshot, if there is one.

        Model, optimizer and schedulers must be ready for the task's first
        iteration.
        """
        if not self._snapshot.exists():
            return
        known = self._snapshot.restore(self.runner, self._bare_model)
        self._iter = known['iteration']
        self._earlier_seconds = known['seconds']
        self._random = known['random']
        # as an iteration leaves it, should none be left
        self.runner.model.train()
        self.runner.logger.info(f'goes on after iteration {self._iter} of '
                                f'{self._max_iters}')

    def train(self) -> float:
        """Run to the last iteration.

        Returns:
            float: Seconds, those before an interruption included.
        """
        # gradients that are still being gathered are not kept
        accumulated = self.runner.optim_wrapper._accumulative_counts
        self._interval = math.lcm(self._interval, accumulated)
        self._started = time.perf_counter()
        self.run()
        self._draw_as_before()
        return self._seconds()

    def run_iter(self, data_batch: Sequence[dict]) -> None:
        """One iteration, and a snapshot where it is due."""
        # only now: starting the loader has drawn from the generators
        self._draw_as_before()
        super().run_iter(data_batch)
        if self._iter % self._interval == 0 or self._iter == self._max_iters:
            self._snapshot.save(self.runner, self._bare_model, self._iter,
                                self._seconds())

    def _draw_as_before(self) -> None:
        if self._random is not None:
            set_random_state(self._random)
            self._random = None

    def _seconds(self) -> float:
        return self._earlier_seconds + time.perf_counter() - self._started
