# SPDX-License-Identifier: Apache-2.0
"""What the config of a task may say."""
from __future__ import annotations

import unicodedata
from typing import Any, Mapping, Optional, Sequence, TypeGuard

from mmseg_mile.structures import check_task_name

TASK_KEYS = ('name', 'train_dataset', 'val_dataset', 'max_iters', 'init_from',
             'family')


def in_order(configs: Any, order: Optional[Sequence[str]]) -> Any:
    """Tasks in the order in which they shall be learned.

    Args:
        configs (Any): ``train_cfg.tasks``.
        order (Sequence[str], optional): All their names; None leaves the
            tasks as they are.

    Raises:
        ValueError: If ``order`` does not name every task once.
    """
    if order is None:
        return configs
    names = [
        config.get('name') if isinstance(config, Mapping) else None
        for config in _listed(configs)
    ]
    if not _is_list(order) or (sorted(map(str, order)) != sorted(
            map(str, names))):
        raise ValueError('train_cfg.order must name every task once, got '
                         f'{order!r}; the tasks are {names}')
    places = [str(name) for name in names]
    return [configs[places.index(str(name))] for name in order]


def check_task_configs(configs: Any, max_iters: Any) -> None:
    """Refuse a list of tasks that could not be opened.

    Args:
        configs (Any): ``train_cfg.tasks``.
        max_iters (Any): Of tasks that name none.

    Raises:
        ValueError: Naming the task and the field.
    """
    if configs is None or not len(_listed(configs)):
        raise ValueError('train_cfg.tasks is empty: a stream needs at '
                         'least one task')
    known: dict[str, str] = {}
    for index, config in enumerate(configs):
        if not isinstance(config, Mapping):
            raise ValueError(f'train_cfg.tasks[{index}] must be a dict with '
                             f'{list(TASK_KEYS)}, got {config!r}')
        check_task_config(config, max_iters)
        name = config['name']
        # one folder where file names know no case or Unicode form
        same = known.setdefault(
            unicodedata.normalize('NFKC', name).casefold(), name)
        if index >= len(known):
            both = (f'called {name!r}' if same == name else
                    f'called {same!r} and {name!r}, one name to some disks')
            raise ValueError(f'two tasks of the stream are {both}: names must '
                             'be unique, they are also the names of the '
                             'experts')


def check_task_config(config: Mapping[str, Any], max_iters: Any) -> None:
    """Refuse one task; arguments and errors as above."""
    unknown = sorted(set(map(str, config)) - set(TASK_KEYS))
    missing = [k for k in TASK_KEYS[:3] if k not in config]
    if unknown or missing:
        raise ValueError(
            f'task {config.get("name")!r} has unknown keys {unknown} and '
            f'lacks {missing}; a task has {list(TASK_KEYS)}')
    name = check_task_name(config['name'])
    for key in ('train_dataset', 'val_dataset'):
        value = config[key]
        if not isinstance(value, Mapping) or 'type' not in value:
            raise ValueError(f'{key} of task {name!r} must be a dict with a '
                             f'"type" and the arguments of it, got {value!r}')
    iters = config.get('max_iters', max_iters)
    if type(iters) is not int or iters < 1:
        raise ValueError(f'max_iters of task {name!r} must be a whole '
                         f'number >= 1, got {iters!r}')
    for key in ('init_from', 'family'):
        value = config.get(key)
        if value is not None and not isinstance(value, str):
            raise ValueError(f'{key} of task {name!r} must be a name, got '
                             f'{value!r}')


def check_metainfo(metainfo: Mapping[str, Any], where: str) -> None:
    """Refuse classes or colours that are not what they seem.

    Args:
        metainfo (Mapping[str, Any]): Of an opened dataset.
        where (str): Names the dataset.

    Raises:
        ValueError: Naming the field and its value.
    """
    classes, palette = metainfo.get('classes'), metainfo.get('palette')
    if not classes:
        raise ValueError(f'{where} declares no classes: give it '
                         'metainfo=dict(classes=(...))')
    if not _is_list(classes) or not all(
            isinstance(c, str) and c for c in classes):
        raise ValueError(f'{where}: metainfo.classes must be a list of names, '
                         f"got {classes!r}: write ('road', ) for one class")
    if not _is_list(palette) or not all(
            _is_list(c) and len(c) == 3 for c in palette):
        raise ValueError(f'{where}: metainfo.palette must be a list with one '
                         f'[red, green, blue] per class, got {palette!r}')


def _listed(configs: Any) -> Sequence[Any]:
    if not _is_list(configs):
        raise ValueError('train_cfg.tasks must be a list of dicts, one per '
                         f'task, got {configs!r}')
    return configs


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, (list, tuple))
