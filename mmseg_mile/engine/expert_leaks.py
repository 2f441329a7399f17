# SPDX-License-Identifier: Apache-2.0
"""What is left of an expert in a base and other experts when it is gone."""
from __future__ import annotations

from typing import Any, Dict, List, Mapping, NamedTuple, Sequence, Tuple

from mmseg_mile.evaluation.leave_one_out import Leak
from mmseg_mile.structures import Task

# Under these, an expert that was learned later may have any earlier parent.
_BY_DISTANCE = ('nearest', 'fused')


class Parents(NamedTuple):
    """Where an expert started.

    Args:
        names (tuple[str]): Experts; () for the base.
        certain (bool): False if it may have been any of them.
    """
    names: Tuple[str, ...]
    certain: bool = True


def parents_of(tasks: Sequence[Task], init_from: str,
               provenances: Mapping[str, Mapping[str, Any]],
               adopted: bool) -> Dict[str, Parents]:
    """Where each expert started, by what it says, else by the config.

    Args:
        tasks (Sequence[Task]): In the order in which they were learned.
        init_from (str): Of tasks that name none.
        provenances (Mapping[str, Mapping]): Of each expert.
        adopted (bool): Whether the config is not the one that trained them.

    Returns:
        dict[str, Parents]: By expert.
    """
    found = {}
    for index, task in enumerate(tasks):
        earlier = tuple(t.name for t in tasks[:index])
        told = provenances[task.name].get('started_from')
        start = task.init_from or init_from
        if told is not None:
            found[task.name] = Parents(tuple(told))
        elif not earlier or (start == 'base' and not adopted):
            found[task.name] = Parents(())
        elif adopted or start in _BY_DISTANCE:
            found[task.name] = Parents(earlier,
                                       len(earlier) < 2 and not adopted)
        else:
            parent = earlier[-1] if start == 'previous' else start
            found[task.name] = Parents((parent, ))
    return found


def find_leaks(removed: Tuple[str, ...], parents: Mapping[str, Parents],
               base_saw: Sequence[str]) -> List[Leak]:
    """The ways in which removed experts are still there.

    Args:
        removed (tuple[str]): Experts that are not there.
        parents (Mapping[str, Parents]): Of all experts.
        base_saw (Sequence[str]): Tasks that the base was trained on.
    """
    seen = tuple(name for name in base_saw if name in removed)
    leaks = [Leak(removed, 'base', seen)] if seen else []
    kept = [name for name in parents if name not in removed]
    lines = {name: _ancestors(name, parents) for name in kept}
    for certain in (True, False):
        through = tuple(
            name for name in kept
            if _strongest(lines[name], removed) is certain)
        if through:
            leaks.append(Leak(removed, 'experts', through, certain))
    return leaks


def _strongest(line: Mapping[str, bool], removed: Sequence[str]) -> Any:
    """True for a removed ancestor, False for a possible one, else None."""
    found = [line[name] for name in removed if name in line]
    return any(found) if found else None


def _ancestors(name: str, parents: Mapping[str, Parents]) -> Dict[str, bool]:
    """All that an expert descends from, and whether that is certain."""
    line: Dict[str, bool] = {}
    open_ends = [(name, True)]
    while open_ends:
        child, certain = open_ends.pop()
        for parent in parents[child].names if child in parents else ():
            sure = certain and parents[child].certain
            if parent not in line or (sure and not line[parent]):
                line[parent] = sure
                open_ends.append((parent, sure))
    return line
