# SPDX-License-Identifier: Apache-2.0
"""Tasks of one origin."""
from __future__ import annotations

import json
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from .task import Task

# They only say how the images of the datasets inside are put together.
_WRAPPERS = ('ConcatDataset', 'RepeatDataset', 'ClassBalancedDataset',
             'MultiImageMixDataset')


def families(tasks: Sequence[Task]) -> Dict[str, Tuple[str, ...]]:
    """The tasks that come from where each task comes from.

    Tasks that name the same ``family`` are one. Of the others, those are one
    whose images are read by one class of dataset below one ``data_root``:
    the conditions of ACDC, or two sensors of one drive.

    Args:
        tasks (Sequence[Task]): Of a stream.

    Returns:
        dict[str, tuple[str]]: By task, the names of its family, itself
        included, in the stream's order.
    """
    members: Dict[str, List[str]] = {}
    origins = {task.name: _origin(task) for task in tasks}
    for name, origin in origins.items():
        members.setdefault(origin, []).append(name)
    return {name: tuple(members[origins[name]]) for name in origins}


def _origin(task: Task) -> str:
    if task.family is not None:
        return json.dumps(['family', task.family])
    # a family and a folder of one name are two things
    return json.dumps(_sources(task.val_dataset))


def _sources(config: Mapping[str, Any]) -> Any:
    kind = config.get('type', '')
    kind = kind if isinstance(kind, str) else kind.__name__
    if 'datasets' in config:
        return [kind, *sorted(map(_sources, config['datasets']), key=str)]
    if kind in _WRAPPERS and 'dataset' in config:
        return _sources(config['dataset'])
    return [kind, str(config.get('data_root', ''))]
