# SPDX-License-Identifier: Apache-2.0
"""Every expert forced on every task, each pair once."""
from __future__ import annotations

from pathlib import Path
from typing import Callable, Dict, Iterable, Sequence

import numpy as np
from mmengine.dist import is_main_process
from numpy.typing import ArrayLike

from mmseg_mile.evaluation import read_json, write_json
from mmseg_mile.models import ContinualSegmentor
from mmseg_mile.structures import Task
from .task_evaluator import evaluate_forced


class CrossScores:
    """A (T, T) matrix of mIoU in a file that grows by each pair.

    Rows are tasks, columns experts. What an expert is, is told by the digest
    of its label maps on its own task: pairs of experts and tasks that are
    as they were are not evaluated again.

    Args:
        path (Path): The file.
        tasks (Sequence[str]): Names of the T tasks.
        digests (dict[str, str]): Of their oracle label maps.
    """

    def __init__(self, path: Path, tasks: Sequence[str],
                 digests: Dict[str, str]) -> None:
        self.path = path
        self.tasks = list(tasks)
        self.digests = digests
        self.matrix = np.full((len(tasks), ) * 2, np.nan)
        if path.exists():
            self._take_up(read_json(path))

    def fill_forced(self, model: ContinualSegmentor, tasks: Sequence[Task],
                    loader: Callable[[Task], Iterable[dict]],
                    own: ArrayLike) -> np.ndarray:
        """Evaluate what is missing with a model's experts.

        Args:
            model (ContinualSegmentor): Has the experts.
            tasks (Sequence[Task]): Of the stream.
            loader (Callable): Validation images of a task.
            own (ArrayLike): (T,) mIoU of each task with its own expert.

        Returns:
            np.ndarray: (T, T) mIoU in per cent.
        """
        by_name = {task.name: task for task in tasks}
        return self.fill(
            lambda task, expert: evaluate_forced(model, by_name[
                task], loader(by_name[task]), expert), own)

    def fill(self, evaluate: Callable[[str, str], float],
             own: ArrayLike) -> np.ndarray:
        """Evaluate what is missing.

        Args:
            evaluate (Callable): mIoU in per cent of a task with an expert.
            own (ArrayLike): (T,) of each task with its own expert.

        Returns:
            np.ndarray: (T, T) mIoU in per cent.
        """
        np.fill_diagonal(self.matrix, own)
        for row, task in enumerate(self.tasks):
            for column, expert in enumerate(self.tasks):
                if np.isnan(self.matrix[row, column]) and row != column:
                    self.matrix[row, column] = evaluate(task, expert)
                    self._save()
        self._save()
        return self.matrix

    def _save(self) -> None:
        if is_main_process():
            write_json(
                self.path,
                dict(
                    tasks=self.tasks,
                    miou=self.matrix.tolist(),
                    digests=self.digests))

    def _take_up(self, known: Dict) -> None:
        miou = np.array(known['miou'], dtype=float)
        same = {
            name: known['tasks'].index(name)
            for name in self.tasks if name in known['tasks']
            and known['digests'].get(name) == self.digests.get(name)
        }
        for row, task in enumerate(self.tasks):
            for column, expert in enumerate(self.tasks):
                if task in same and expert in same:
                    self.matrix[row, column] = miou[same[task], same[expert]]
