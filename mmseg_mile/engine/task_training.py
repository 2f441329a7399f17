# SPDX-License-Identifier: Apache-2.0
"""A stock training loop for one task inside a runner of many."""
from __future__ import annotations

import contextlib
import copy
import math
import time
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Sequence

import torch
from mmengine.dist import all_reduce_params
from mmengine.hooks import CheckpointHook, IterTimerHook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from mmseg.registry import OPTIM_WRAPPERS
from .snapshot import TaskSnapshot, set_random_state


def bare_model(runner: Runner) -> Any:
    """The runner's model without the wrapper of distributed training."""
    model = runner.model
    return model.module if is_model_wrapper(model) else model


def train_task(runner: Runner, loader: DataLoader, max_iters: int,
               folder: Path, snapshot_interval: int) -> float:
    """Train what is trainable with a new optimizer and new schedulers.

    Goes on from the task's snapshot where there is one.

    Args:
        runner (Runner): Its model is ready for the task.
        loader (DataLoader): The task's training images.
        max_iters (int): Optimizer steps.
        folder (Path): Checkpoints and snapshot of this task only.
        snapshot_interval (int): Iterations between two snapshots.

    Returns:
        float: Seconds, those before an interruption included.
    """
    model = bare_model(runner)
    loop = TaskTrainLoop(runner, model, loader, max_iters,
                         TaskSnapshot(folder), snapshot_interval)
    with _hosted(runner, loop, folder):
        # The reducer of a wrapped model knows the parameters that were
        # trainable when it was wrapped, so each task wraps anew.
        runner.model = runner.wrap_model(
            runner.cfg.get('model_wrapper_cfg'), model)
        config = copy.deepcopy(runner.cfg)
        # scale_lr refuses to run beside the schedulers of the last task
        runner.param_schedulers = None
        runner.optim_wrapper = runner.build_optim_wrapper(
            model.optim_wrapper_config(config.optim_wrapper))
        runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
        if config.get('param_scheduler') is not None:
            runner.param_schedulers = runner.build_param_scheduler(
                config.param_scheduler)
        loop.resume()
        runner.optim_wrapper.initialize_count_status(runner.model, loop.iter,
                                                     max_iters)
        try:
            seconds = loop.train()
        finally:
            runner.model = model
    average_statistics(model)
    return seconds


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
        """Go on from the snapshot, if there is one.

        Model, optimizer and schedulers must be ready for the task's first
        iteration.
        """
        if not self._snapshot.path.exists():
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
        self._restore_random_state()
        return self._seconds()

    def run_iter(self, data_batch: Sequence[dict]) -> None:
        """One iteration, and a snapshot where it is due."""
        # only now: starting the loader has drawn from the generators
        self._restore_random_state()
        super().run_iter(data_batch)
        if self._iter % self._interval == 0 or self._iter == self._max_iters:
            self._snapshot.save(self.runner, self._bare_model, self._iter,
                                self._seconds())

    def _restore_random_state(self) -> None:
        if self._random is not None:
            set_random_state(self._random)
            self._random = None

    def _seconds(self) -> float:
        return self._earlier_seconds + time.perf_counter() - self._started


@contextlib.contextmanager
def _hosted(runner: Runner, loop: TaskTrainLoop,
            folder: Path) -> Iterator[None]:
    """Let the runner and its hooks see one task's loop and folder."""
    outer, work_dir = runner._train_loop, runner._work_dir
    runner._train_loop, runner._work_dir = loop, str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    runner.message_hub.runtime_info.pop('keep_ckpt_ids', None)
    # a hook would go on writing to the folder of the first task
    out_dirs = [(h, h.out_dir) for h in runner.hooks
                if isinstance(h, CheckpointHook)]
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook):
            hook.last_ckpt = None
        if isinstance(hook, IterTimerHook):
            # the time left of this task follows from its own iterations
            hook.time_sec_tot = 0
    try:
        yield
    finally:
        for hook, out_dir in out_dirs:
            hook.out_dir = out_dir
        runner._train_loop, runner._work_dir = outer, work_dir


def average_statistics(model: nn.Module) -> None:
    """Give every process the mean of all processes' running statistics.

    A plain batch norm sees the images of its own process only; what rank 0
    keeps would not be what the others evaluate. Those of the frozen base
    keep their values bit by bit. In a single process nothing changes.

    Args:
        model (nn.Module): Put into training mode, which tells the norm
            layers that learn from those that are frozen.
    """
    model.train()
    all_reduce_params(
        # not by track_running_stats, which is off where blocks are recomputed
        (statistic for module in model.modules() if module.training
         and getattr(module, 'running_mean', None) is not None
         for statistic in (module.running_mean, module.running_var)),
        op='mean')


@OPTIM_WRAPPERS.register_module()
class Bfloat16OptimWrapper(OptimWrapper):
    """Forward passes under bfloat16 autocast, on any device.

    ``AmpOptimWrapper`` asks for a GPU because it scales losses for float16.
    bfloat16 has the range of float32 and needs no scaling. Parameters,
    their gradients and the optimizer stay float32.

    Args:
        **kwargs: As for ``OptimWrapper``.
    """

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast on the device of ``model``.

        Args:
            model (nn.Module): The model that is trained.
        """
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(
                device, dtype=torch.bfloat16):
            yield
