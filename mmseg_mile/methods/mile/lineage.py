# SPDX-License-Identifier: Apache-2.0
"""Where experts start, which ones started from them, and what that gives."""
from __future__ import annotations

from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Set

import torch
from torch import Tensor

from mmseg_mile.gates.base_gate import BaseGate
from mmseg_mile.structures import Expert, Task

# Shape legend: E experts

_STARTS = ('base', 'nearest', 'previous', 'fused')


def initial_experts(task: Task, init_from: str, earlier: Sequence[str],
                    gate: BaseGate,
                    embed: Callable[[], Optional[Tensor]]) -> Dict[str, float]:
    """The experts that the expert of a task starts from.

    Decided here alone; it then stands in the expert's record.

    Args:
        task (Task): The task; its own ``init_from`` goes first.
        init_from (str): See :class:`ExpertSegmentor`.
        earlier (Sequence[str]): The tasks before it, in order.
        gate (BaseGate): Has learned those.
        embed (Callable): Gives the embeddings of the task's images, as
            :meth:`BaseGate.fit` takes them; called where the gate is asked.

    Returns:
        dict[str, float]: Weights of sum 1; {} for the base.

    Raises:
        ValueError: See :func:`check_start`.
    """
    start = check_start(task, init_from, earlier, gate)
    known: Any = gate
    if not earlier or start == 'base':
        return {}
    if start == 'fused':
        return known.neighbours(embed())
    if start == 'nearest':
        start = known.nearest(embed())
    elif start == 'previous':
        start = earlier[-1]
    return {start: 1.0}


def check_start(task: Task, init_from: str, earlier: Sequence[str],
                gate: BaseGate) -> str:
    """The start of a task; arguments as in :func:`initial_experts`.

    Raises:
        ValueError: If there is no such start, or the gate has no distances.
    """
    start = task.init_from or init_from
    if start not in _STARTS and start not in earlier:
        raise ValueError(
            f'init_from of task {task.name!r} must be one of {_STARTS} '
            f'or an earlier task {tuple(earlier)}, got {start!r}')
    by_distance = start in ('nearest', 'fused')
    if earlier and by_distance and not hasattr(gate, 'nearest'):
        raise ValueError(
            f'init_from={start!r} asks the gate for distances, which '
            f'{type(gate).__name__} has not: use PrototypeGate, '
            "or init_from='previous'")
    return start


def origin_from(parents: Mapping[str, str],
                origins: Mapping[str, Mapping[str, Any]]) -> Dict[str, Any]:
    """The origin of an expert that starts from others.

    Args:
        parents (Mapping[str, str]): Checksums of their weights by name.
        origins (Mapping[str, dict]): See :func:`origin_of`, by expert.
    """
    line = set(parents.values())
    line.update(*(origins[name]['ancestors'] for name in parents))
    return dict(started_from=dict(parents), ancestors=sorted(line))


def origin_of(expert: Expert) -> Dict[str, Any]:
    """The facts of an expert's record that a model goes by.

    ``started_from``, checksums of its parents by name; ``ancestors``, those
    of its parents and of theirs; both empty if it says none;
    ``weights_sha256``, its own; ``trained_base``, True if the base was
    trained with it.
    """
    known = ('started_from', 'ancestors', 'weights_sha256', 'trained_base')
    facts = {k: v for k, v in expert.provenance.items() if k in known}
    parents = facts.get('started_from', {})
    return dict(
        dict(started_from=parents, ancestors=list(parents.values())), **facts)


def children(name: str, origins: Mapping[str, Mapping[str, Any]]) -> Set[str]:
    """Experts that started from this one, or from one that did.

    Experts know their ancestors by the checksums of their weights, so that
    any may be renamed, and those in between removed.

    Args:
        name (str): The expert.
        origins (Mapping[str, dict]): See :func:`origin_of`, by expert.
    """
    own = origins[name].get('weights_sha256')
    return {
        other
        for other, origin in origins.items()
        if other != name and own in origin['ancestors']
    }


def child_weights(names: Sequence[str], origins: Mapping[str, Any],
                  classes: Sequence[Any], distances_EE: Tensor,
                  temperature: float) -> Tensor:
    """(E, E) weights of what stands for each expert: itself, its children.

    ``w_ij = softmax_j(-d_ij / (d_ii T))`` with the root mean squared distance
    ``d_ij`` of expert i's training images to expert j. A child went on
    training the weights of its parent; the line between them passes through
    models that are better for the parent's images than where it stopped, as
    long as the child's domain is near. Children of other classes are left
    out.
    """
    weights_EE = torch.eye(len(names), dtype=distances_EE.dtype)
    for row, name in enumerate(names):
        later = children(name, origins)
        columns = [row] + [
            i for i, other in enumerate(names)
            if other in later and classes[i] == classes[row]
        ]
        near = distances_EE[row, columns]
        # of equal images nothing else is as near
        if near[0] > 0:
            scores = -near / (near[0] * temperature)
            weights_EE[row, columns] = scores.softmax(0)
    return weights_EE
