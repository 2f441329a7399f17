# SPDX-License-Identifier: Apache-2.0
"""A stock training loop for one task inside a runner of many."""
from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any, Iterator

from mmengine.hooks import CheckpointHook, IterTimerHook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..norm_statistics import average_statistics
from ..task_snapshot import TaskSnapshot
from .task_train_loop import TaskTrainLoop


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
