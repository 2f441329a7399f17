# SPDX-License-Identifier: Apache-2.0
"""Scores of an evaluation row that is not complete."""
from __future__ import annotations

import shutil
from pathlib import Path
from typing import Callable

from mmengine.dist import is_main_process

from mmseg_mile.evaluation import read_json, write_json
from mmseg_mile.structures import Task
from .task_evaluator import TaskScore

Evaluate = Callable[[Task], TaskScore]


class KeptRow:
    """The score of each task, on disk as soon as it is known.

    Args:
        folder (Path): Of the row in progress; gone when it is complete.
        row (str): Name of the task that was learned last.
    """

    def __init__(self, folder: Path, row: str) -> None:
        self.folder = folder
        self.row = row

    def score(self, task: Task, evaluate: Evaluate) -> TaskScore:
        """The kept score of a task, or else a new one.

        Args:
            task (Task): The task.
            evaluate (Callable): Scores it.
        """
        path = self.folder / f'{task.name}.json'
        if path.exists():
            kept = read_json(path)
            if kept['row'] == self.row:
                return TaskScore.from_document(task, kept['score'])
        score = evaluate(task)
        if is_main_process():
            write_json(path, dict(row=self.row, score=score.to_document()))
        return score

    def discard(self) -> None:
        """The row is complete, and kept elsewhere."""
        if is_main_process():
            shutil.rmtree(self.folder, ignore_errors=True)
