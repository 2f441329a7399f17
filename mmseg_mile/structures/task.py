# SPDX-License-Identifier: Apache-2.0
"""One task of a stream: a domain or a modality with classes of its own."""
from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Dict, Optional, Tuple

_NAME = re.compile(r'\w[\w .+-]*')
# a file name has 255 bytes, some of which are needed for what is added
_MAX_BYTES = 200


def check_task_name(name: Any) -> str:
    """Return ``name`` if it can name a task, an expert and its folder.

    Raises:
        ValueError: If it is no string, is empty, too long, or holds
            characters that could leave the library's folder.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or (
            name != name.strip() or name.endswith('.')):
        raise ValueError(
            f'task name must start with a letter, digit or underscore and '
            f'may go on with those, spaces, ".", "+" and "-", got {name!r}. '
            'Rename the task: the name is also the folder of its expert.')
    if len(name.encode()) > _MAX_BYTES:
        raise ValueError(f'task name must not exceed {_MAX_BYTES} bytes, '
                         f'{name[:20]!r}... has {len(name.encode())}: the '
                         'name is also the folder of its expert.')
    return name


@dataclass(frozen=True)
class Task:
    """A named domain or modality, its classes and its two datasets.

    Args:
        name (str): Unique in the stream; also the name of its expert.
        classes (tuple[str]): The task's own label space.
        palette (tuple): One RGB triple per class.
        train_dataset (dict): Config of the training dataset.
        val_dataset (dict): Config of the dataset that is evaluated.
        max_iters (int): Training iterations (optimizer steps).
        init_from (str, optional): Where the expert of this task starts,
            overriding the method's own setting. Defaults to None.
        family (str, optional): Name that it shares with tasks of the same
            origin, see :func:`families`. Defaults to None.
    """
    name: str
    classes: Tuple[str, ...]
    palette: Tuple[Tuple[int, ...], ...]
    train_dataset: Dict[str, Any] = field(repr=False)
    val_dataset: Dict[str, Any] = field(repr=False)
    max_iters: int = 0
    init_from: Optional[str] = None
    family: Optional[str] = None

    def __post_init__(self) -> None:
        check_task_name(self.name)
        if not self.classes:
            raise ValueError(
                f'task {self.name!r} has no classes: give its datasets '
                '`metainfo=dict(classes=...)` or use a dataset class that '
                'declares them.')
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f'task {self.name!r} names a class twice: '
                             f'{self.classes}')

    @property
    def num_classes(self) -> int:
        """int: Size of the task's own label space."""
        return len(self.classes)
