# SPDX-License-Identifier: Apache-2.0
"""Where a new expert starts."""
from __future__ import annotations

from typing import Callable, Optional, Sequence

from mmseg_mile.structures import Task
from ..gates import BaseGate

_STARTS = ('base', 'nearest', 'previous')


def check_start(task: Task, default: str, known: Sequence[str],
                gate: BaseGate) -> None:
    """Refuse a start that there is not.

    Args:
        task (Task): The task.
        default (str): For a task that names no ``init_from``.
        known (Sequence[str]): The tasks before it, in order.
        gate (BaseGate): Is asked for the nearest of those.

    Raises:
        ValueError: If the start is unknown, or the gate knows no nearest.
    """
    start = task.init_from or default
    if start not in _STARTS and start not in known:
        raise ValueError(
            f'init_from of task {task.name!r} must be one of {_STARTS} '
            f'or an earlier task {tuple(known)}, got {start!r}')
    if known and start == 'nearest' and not hasattr(gate, 'nearest'):
        raise ValueError(
            "init_from='nearest' asks the gate for distances, which "
            f'{type(gate).__name__} has not: use PrototypeGate, '
            "or init_from='previous'")


def start_of(task: Task, default: str, known: Sequence[str],
             nearest: Callable[[], str]) -> Optional[str]:
    """The expert that a task starts from when tasks come one by one.

    Args:
        task (Task): The task.
        default (str): For a task that names no ``init_from``: 'base',
            'previous', 'nearest' or an earlier task.
        known (Sequence[str]): The tasks before it, in order.
        nearest (Callable): Gives the nearest of those.

    Returns:
        str | None: Name of an earlier task, or None for the base.
    """
    start = task.init_from or default
    if not known or start == 'base':
        return None
    if start == 'previous':
        return known[-1]
    return nearest() if start == 'nearest' else start
