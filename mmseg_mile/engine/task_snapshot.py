# SPDX-License-Identifier: Apache-2.0
"""A task in the middle of its training, kept to go on from."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Optional

import torch
from mmengine.dist import all_gather_object, get_rank, is_main_process
from mmengine.runner import Runner
from torch import Tensor, nn

from .divergence import diverged
from .random_state import random_state
from .snapshot_file import read_snapshot, write_snapshot

_NAME = 'snapshot.safetensors'


class TaskSnapshot:
    """What training a task has changed so far, in one file.

    Trainable parameters, all buffers, optimizer, schedulers and the random
    state of every process. What is frozen is known without it. An older
    snapshot stays until the new one is complete.

    Args:
        folder (Path): Of the task.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / _NAME

    def exists(self) -> bool:
        """Whether there is one."""
        return self.path.exists()

    def discard(self) -> None:
        """Forget it: the task is finished, or begins anew."""
        if is_main_process():
            self.path.unlink(missing_ok=True)

    def save(self, runner: Runner, model: nn.Module, iteration: int,
             seconds: float) -> None:
        """Replace the snapshot by the state as it is now.

        Every process must call it after the same iteration.

        Args:
            runner (Runner): Whose optimizer and schedulers.
            model (nn.Module): Unwrapped.
            iteration (int): Iterations that are done.
            seconds (float): Training time so far.

        Raises:
            FloatingPointError: If a value is NaN or infinite. The earlier
                snapshot is kept.
        """
        own = dict(random=random_state(), buffers=dict(model.named_buffers()))
        state = dict(
            iteration=iteration,
            seconds=seconds,
            parameters=_trainable(model),
            optimizer=runner.optim_wrapper.state_dict(),
            schedulers=[_plain(s.state_dict()) for s in _schedulers(runner)],
            processes=all_gather_object(own))
        lost = _not_finite(state, model)
        if lost is not None:
            raise diverged(f'{lost} is not finite', iteration)
        if is_main_process():
            write_snapshot(self.path, state)

    def restore(self, runner: Runner, model: nn.Module) -> Dict[str, Any]:
        """Bring model, optimizer and schedulers to where they were.

        Returns:
            dict: ``iteration``, ``seconds``, and ``random``, the random
            state of this process.

        Raises:
            ValueError: If the file is broken, or of another model.
        """
        state = read_snapshot(self.path)
        own = state['processes'][get_rank()]
        self._copy(_trainable(model), state['parameters'])
        self._copy(dict(model.named_buffers()), own['buffers'])
        runner.optim_wrapper.load_state_dict(state['optimizer'])
        _lay_out(runner.optim_wrapper.optimizer)
        for scheduler, known in zip(_schedulers(runner), state['schedulers']):
            scheduler.load_state_dict(known)
        return dict(
            iteration=state['iteration'],
            seconds=state['seconds'],
            random=own['random'])

    @torch.no_grad()
    def _copy(self, target: Dict[str, Tensor], source: Dict[str,
                                                            Tensor]) -> None:
        wrong = sorted(set(target) ^ set(source)) or [
            name for name in target if target[name].shape != source[name].shape
        ]
        if wrong:
            raise ValueError(
                f'{self.path} is of another model, {wrong[0]} differs: '
                'remove it, and its task is trained from its beginning.')
        for name, value in target.items():
            value.copy_(source[name])


def _trainable(model: nn.Module) -> Dict[str, Tensor]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def _schedulers(runner: Runner) -> List[Any]:
    return list(runner.param_schedulers or [])


def _plain(state: Dict[str, Any]) -> Dict[str, Any]:
    # some schedulers hold a function, which their config says again
    return {k: v for k, v in state.items() if not callable(v)}


def _lay_out(optimizer: Any) -> None:
    """Give the state the memory layout of its parameter, as when made new.

    Kernels round differently for another layout.
    """
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[key] = torch.empty_like(
                    parameter, dtype=value.dtype).copy_(value)


def _not_finite(state: Dict[str, Any], model: nn.Module) -> Optional[str]:
    """Name of a parameter or statistic that is lost."""
    for name, value in state['parameters'].items():
        if not torch.isfinite(value).all():
            return name
    for name, value in model.named_buffers():
        # masks may be infinite, but nothing may be NaN
        if torch.isnan(value).any():
            return name
    for index, values in state['optimizer']['state'].items():
        for key, value in values.items():
            if isinstance(value, Tensor) and not torch.isfinite(value).all():
                return f'{key} of parameter {index} in the optimizer'
    return None
