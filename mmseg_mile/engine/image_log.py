# SPDX-License-Identifier: Apache-2.0
"""From predicted data samples to lines of the routing log."""
from __future__ import annotations

import os.path as osp
from pathlib import PurePath
from typing import Any, Dict, Optional

from mmseg_mile.evaluation import DomainIoU, RoutedImage
from mmseg_mile.structures import Task


class ImageLog:
    """Describes the images of one task in one evaluation row.

    Args:
        task (Task): The task.
        after (str): Name of the task that was learned last.
        data_root (str): Files are named relative to it.
    """

    def __init__(self, task: Task, after: str, data_root: str) -> None:
        self._task = task
        self._after = after
        self._root = osp.abspath(data_root)

    def entry(self, sample: Any, routed: DomainIoU,
              oracle: Optional[DomainIoU]) -> RoutedImage:
        """The line of one image.

        Args:
            sample (SegDataSample): The routed prediction.
            routed (DomainIoU): Counts of this image alone.
            oracle (DomainIoU, optional): The same with the own expert.
        """
        return RoutedImage(
            after=self._after,
            task=self._task.name,
            dataset=_type_of(self._task.val_dataset),
            file=self._name(sample.get('img_path') or ''),
            expert=sample.get('expert'),
            mixture=sample.get('mixture') or {},
            distances=sample.get('distances') or {},
            unfamiliar=sample.get('unfamiliar'),
            miou=routed.miou(),
            oracle_miou=None if oracle is None else oracle.miou())

    def _name(self, path: str) -> str:
        absolute = osp.abspath(path)
        below = osp.commonpath([absolute, self._root]) == self._root
        name = osp.relpath(absolute, self._root) if path and below else path
        # a name need not be UTF-8, the log is
        known = name.encode('utf-8', 'backslashreplace').decode()
        return PurePath(known).as_posix() if known else ''


def _type_of(config: Dict[str, Any]) -> str:
    kind = config.get('type', '')
    return kind if isinstance(kind, str) else kind.__name__
