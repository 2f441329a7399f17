# SPDX-License-Identifier: Apache-2.0
"""What a run left in its work dir, as its report needs it."""
from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import List, Optional, Sequence

from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.evaluation.routing_log import (RoutedImage, read_routing_log,
                                               routing_log_path)
from mmseg_mile.files import PathLike
from mmseg_mile.visualization.picture_store import PictureStore


@dataclass(frozen=True)
class RunRecord:
    """One run, finished or not.

    Args:
        results (StreamResults): ``results.json``.
        images (Sequence[RoutedImage]): Routing log of the last finished
            row; empty where there is none. Defaults to ().
        predictions (PictureStore, optional): Pictures of that row, the
            first of every task; None where there are none. Defaults to None.
        costly (PictureStore, optional): The same of the images whose
            routing cost most. Defaults to None.
    """
    results: StreamResults
    images: Sequence[RoutedImage] = field(default_factory=list)
    predictions: Optional[PictureStore] = None
    costly: Optional[PictureStore] = None

    @property
    def learned(self) -> List[str]:
        """list[str]: Tasks with a finished row, in the stream's order."""
        return self.results.tasks[:self.results.num_finished_rows]


def read_run(work_dir: PathLike) -> RunRecord:
    """Read the files of a run.

    Args:
        work_dir (PathLike): Holds ``results.json`` and, where they were
            written, ``routing_log`` and ``pictures``.

    Raises:
        ValueError: If there are no results, or a file is broken or of
            another run; names the file.
    """
    folder = Path(work_dir)
    path = folder / 'results.json'
    if not path.is_file():
        raise ValueError(f'{os.fspath(folder)} holds no results.json: name '
                         'the work dir of a run that has learned a task')
    results = StreamResults.load(path)
    rows = results.num_finished_rows
    if not rows:
        return RunRecord(results)
    after = results.tasks[rows - 1]
    stores = (
        _read_store(folder / 'pictures' / name, after)
        for name in ('predictions', 'routing_cost'))
    return RunRecord(results, _read_log(folder, results, after), *stores)


def _read_log(folder: Path, results: StreamResults,
              after: str) -> List[RoutedImage]:
    path = routing_log_path(folder, after)
    if not path.is_file():
        return []
    images = read_routing_log(path)
    for number, image in enumerate(images, 1):
        if image.after != after or image.task not in results.tasks:
            raise ValueError(
                f'{path}, line {number}: task {image.task!r} after '
                f'{image.after!r} does not belong to the stream '
                f'{results.tasks} after {after!r}. The log is of another '
                'run: evaluate this one again, or remove the file')
    return images


def _read_store(folder: Path, after: str) -> Optional[PictureStore]:
    """The pictures of a row; None where there are none of this row."""
    path = folder / 'index.json'
    if not path.is_file():
        return None
    try:
        store = PictureStore(folder)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path} is no list of pictures ({error!r}). Remove the folder '
            'and evaluate the run again, or report without it') from error
    return store if store.after == after and store.entries else None
