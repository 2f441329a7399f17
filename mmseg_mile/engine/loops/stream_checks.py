# SPDX-License-Identifier: Apache-2.0
"""What a config must not ask for, found out before training starts."""
from __future__ import annotations

from typing import Any, Dict, Sequence

from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.runner import Runner

from mmseg_mile.models import ContinualSegmentor
from mmseg_mile.structures import Task


def check_runner(runner: Runner, model: Any,
                 dataloaders: Dict[str, Dict[str, Any]]) -> None:
    """Refuse a model that cannot learn streams, and settings without effect.

    Args:
        runner (Runner): The runner.
        model (Any): Its model, unwrapped.
        dataloaders (dict): Templates of loaders by the name of their field.

    Raises:
        ValueError: Naming the field.
    """
    if not isinstance(model, ContinualSegmentor):
        raise ValueError(
            'IncrementalTaskLoop trains a ContinualSegmentor such as '
            f'ExpertSegmentor, got model.type {type(model).__name__!r}')
    if any(isinstance(h, EMAHook) for h in runner.hooks):
        raise ValueError(
            'EMAHook averages one fixed set of weights, but every task '
            'trains another: remove it from custom_hooks')
    if runner._val_loop is not None:
        raise ValueError(
            'IncrementalTaskLoop evaluates every task itself: remove '
            'val_cfg, val_dataloader and val_evaluator, and give '
            'train_cfg.val_dataloader if needed')
    if any(
            isinstance(h, CheckpointHook) and h.save_best
            for h in runner.hooks):
        raise ValueError(
            'CheckpointHook.save_best needs validation while a task trains, '
            'which IncrementalTaskLoop has not: remove it')
    for field, template in dataloaders.items():
        if 'dataset' in template:
            raise ValueError(
                f'{field}.dataset has no effect: the datasets stand in '
                'train_cfg.tasks, remove it')


def check_schedule(schedulers: Any, tasks: Sequence[Task]) -> None:
    """Refuse schedulers that begin when the shortest task is over.

    Args:
        schedulers (dict | list[dict], optional): Of the config.
        tasks (Sequence[Task]): Of the stream.

    Raises:
        ValueError: Naming the scheduler and the task.
    """
    shortest = min(tasks, key=lambda t: t.max_iters)
    configs = [schedulers] if isinstance(schedulers, dict) else schedulers
    for index, config in enumerate(configs or []):
        begin = config.get('begin', 0)
        if not config.get('by_epoch', True) and begin >= shortest.max_iters:
            raise ValueError(
                f'param_scheduler.{index}.begin is {begin}, but task '
                f'{shortest.name!r} trains {shortest.max_iters} iterations '
                'only: begin earlier (and let warm-up end there), or train '
                'longer.')


def check_interval(checkpoint_interval: int) -> int:
    """Return ``checkpoint_interval`` if it is one.

    Raises:
        ValueError: If it is below 1.
    """
    if checkpoint_interval < 1:
        raise ValueError('train_cfg.checkpoint_interval must be >= 1, got '
                         f'{checkpoint_interval}')
    return checkpoint_interval
