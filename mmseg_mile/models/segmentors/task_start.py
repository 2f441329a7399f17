# SPDX-License-Identifier: Apache-2.0
"""Where a new expert starts."""
from __future__ import annotations

from typing import Callable, Dict, Optional, Sequence

from mmseg_mile.structures import Task
from ..gates import BaseGate

Start = Dict[str, float]
_STARTS = ('base', 'nearest', 'previous', 'fused')
# Asked of the gate, by the start that needs it.
_ASKED = dict(nearest='nearest', fused='neighbours')


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
    if known and start in _ASKED and not hasattr(gate, _ASKED[start]):
        raise ValueError(
            f'init_from={start!r} asks the gate for distances, which '
            f'{type(gate).__name__} has not: use PrototypeGate, '
            "or init_from='previous'")


def start_of(task: Task, default: str, known: Sequence[str],
             nearest: Callable[[], str],
             neighbours: Callable[[], Start]) -> Optional[Start]:
    """The experts that a task starts from when tasks come one by one.

    Args:
        task (Task): The task.
        default (str): For a task that names no ``init_from``: 'base',
            'previous', 'nearest', 'fused' or an earlier task.
        known (Sequence[str]): The tasks before it, in order.
        nearest (Callable): Gives the nearest of those.
        neighbours (Callable): Gives the nearest ones and their weights.

    Returns:
        dict[str, float] | None: Weights, of sum 1, of earlier tasks; None
        for the base.
    """
    start = task.init_from or default
    if not known or start == 'base':
        return None
    if start == 'fused':
        return neighbours()
    if start == 'previous':
        start = known[-1]
    return {nearest() if start == 'nearest' else start: 1.0}
