# SPDX-License-Identifier: Apache-2.0
"""One task of a stream."""
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


PROTOCOLS = ('domain', 'class', 'sensor')


@dataclass(frozen=True)
class Task:
    """A named domain or modality, its classes and its two datasets.

    Args:
        name (str): Unique in the stream; also the name of its expert.
        classes (tuple[str]): Classes that it labels.
        palette (tuple): One RGB triple per class.
        train_dataset (dict): Config of the training dataset.
        val_dataset (dict): Config of the dataset that is evaluated.
        max_iters (int): Training iterations (optimizer steps).
        init_from (str, optional): Where the expert of this task starts,
            overriding the method's own setting. Defaults to None.
        family (str, optional): Name that it shares with tasks of the same
            origin, see :func:`families`. Defaults to None.
        eval_classes (tuple[str]): Classes that it is evaluated on, such as
            those of all tasks so far. Defaults to (): ``classes``.
        protocol (str): What is new in the task: 'domain', where the images
            look different; 'class', where other classes are labelled;
            'sensor', where images come from other sensors. Defaults to
            'domain'.
        sensors (tuple[str]): Names of its sensors, where each sample is a
            stack of several. Defaults to (): one, without a name.
    """
    name: str
    classes: Tuple[str, ...]
    palette: Tuple[Tuple[int, ...], ...]
    train_dataset: Dict[str, Any] = field(repr=False)
    val_dataset: Dict[str, Any] = field(repr=False)
    max_iters: int = 0
    init_from: Optional[str] = None
    family: Optional[str] = None
    eval_classes: Tuple[str, ...] = ()
    protocol: str = 'domain'
    sensors: Tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_task_name(self.name)
        if not self.classes:
            raise ValueError(
                f'task {self.name!r} has no classes: give its datasets '
                '`metainfo=dict(classes=...)` or use a dataset class that '
                'declares them.')
        if not self.eval_classes:
            object.__setattr__(self, 'eval_classes', tuple(self.classes))
        for named in ('classes', 'eval_classes', 'sensors'):
            names = getattr(self, named)
            if len(set(names)) != len(names):
                raise ValueError(f'{named} of task {self.name!r} must be '
                                 f'different names, got {names}')
        if self.protocol not in PROTOCOLS:
            raise ValueError(f'protocol of task {self.name!r} must be one of '
                             f'{PROTOCOLS}, got {self.protocol!r}')

    @property
    def num_classes(self) -> int:
        """int: Size of the task's own label space."""
        return len(self.classes)
