# SPDX-License-Identifier: Apache-2.0
"""Experts of a finished run, under another gate."""
from __future__ import annotations

from pathlib import Path
from typing import Iterable, Sequence

import numpy as np

from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.library.expert_store import ExpertStore
from mmseg_mile.methods.continual_segmentor import ContinualSegmentor
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from mmseg_mile.structures import Task
from .work_dir import WorkDir


class ReusedExperts:
    """Where a run finds the experts that it need not train.

    Gates can be compared over the very same experts at the price of an
    evaluation. Only adapters, heads and the base are taken over; the gate
    of this run learns every task from its images.

    Args:
        work_dir (str): Of the finished run.
        model (ContinualSegmentor): Takes the experts over.
        tasks (Sequence[Task]): Of the stream.

    Raises:
        ValueError: If the method has no experts.
    """

    def __init__(self, work_dir: str, model: ContinualSegmentor,
                 tasks: Sequence[Task]) -> None:
        self._where = f'train_cfg.experts_from={str(work_dir)!r}'
        if not isinstance(model, ExpertSegmentor):
            raise ValueError(f'{self._where}: {type(model).__name__} has no '
                             'experts; leave experts_from out')
        model.reuses_experts = True
        self._model = model
        self._tasks = tasks
        self._run = WorkDir(Path(work_dir))
        self._store = ExpertStore(self._run.library)
        self._seconds = np.empty(0)

    def open(self, results: StreamResults) -> None:
        """See whether every task that is to be learned is there.

        Args:
            results (StreamResults): Of this run, so far; once it has all
                tasks, the other run may be gone.

        Raises:
            ValueError: If the other run has not learned the tasks, knows
                other classes of one, or is of another seed.
        """
        if results.cost.is_learned.all():
            return
        if not self._run.results_path.exists():
            raise ValueError(f'{self._where} holds no results.json: name the '
                             'work dir of a finished run of the same stream')
        donor = StreamResults.load(self._run.results_path)
        count = int(donor.cost.is_learned.sum())
        learned, names = donor.tasks[:count], results.tasks
        if learned[:len(names)] != names:
            raise ValueError(f'{self._where} has learned {learned}, this '
                             f'stream needs {names} in this order')
        if donor.seed != results.seed:
            raise ValueError(
                f'{self._where} is of seed {donor.seed}, this run of seed '
                f'{results.seed}: compare runs of one seed')
        self._store.open_tasks(self._tasks)
        self._seconds = donor.cost.train_seconds

    def take(self, index: int, images: Iterable[dict]) -> float:
        """Make the expert of a task the model's own.

        Args:
            index (int): Position of the task.
            images (Iterable[dict]): Its training images through the test
                pipeline.

        Returns:
            float: Seconds that its training took in the other run.
        """
        task = self._tasks[index]
        if not self._model.expert_names:
            self._model.backbone.load_base(*self._store.load_base())
        expert, = self._store.open_tasks([task])
        self._model.reuse_expert(task, images, expert)
        return float(self._seconds[index])
