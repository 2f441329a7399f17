# SPDX-License-Identifier: Apache-2.0
"""All tasks of a stream at the same time, with the results of one by one."""
from __future__ import annotations

import shutil
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Dict, Optional

import numpy as np
from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor, nn

from mmseg.registry import TASK_UTILS
from mmseg_mile.evaluation import StreamResults
from mmseg_mile.experts import ExpertStore
from mmseg_mile.models import BaseGate, ExpertSegmentor
from mmseg_mile.models.segmentors.embedding import embed_images
from mmseg_mile.models.segmentors.task_start import start_of
from mmseg_mile.structures import Task
from ..earlier_run import EarlierRun
from ..loops import IncrementalTaskLoop
from .executors import TaskExecutor
from .expert_job import ExpertJob, learn_expert, stream_loop
from .task_graph import run_graph


class ParallelTaskLoop(IncrementalTaskLoop):
    """Learns every task of a stream, each in a process of its own.

    An expert needs the frozen base and the expert it starts from. Which one
    that is, and every prototype, follows from the base alone; so prototypes
    come first, and then each task begins when the one that it starts from is
    finished. What is left in the work dir is what ``--resume`` of the
    sequential loop takes up: it has only to evaluate.

    Args:
        *args: As in :class:`IncrementalTaskLoop`.
        executor (TaskExecutor): Where tasks run.
        num_workers (int): Tasks that run at the same time at most.
        **kwargs: As in :class:`IncrementalTaskLoop`.

    Raises:
        ValueError: If the method has no experts, or takes them over.
    """

    model: ExpertSegmentor

    def __init__(self, *args: Any, executor: TaskExecutor, num_workers: int,
                 **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.model, ExpertSegmentor):
            raise ValueError(
                f'{type(self.model).__name__} keeps no experts over a frozen '
                'base: what it learns of a task depends on all tasks before '
                'it, so tasks cannot be learned at the same time. Use '
                'tools/train.py, or an ExpertSegmentor.')
        if self.adopted:
            raise ValueError(
                'train_cfg.experts_from takes experts over, which leaves '
                'nothing to learn at the same time: use tools/train.py, or '
                'leave it out')
        self.executor = executor
        self.num_workers = num_workers
        self._gate: BaseGate = TASK_UTILS.build(self.runner.cfg.model.gate)
        self._seconds: Dict[str, float] = {}

    def run(self) -> nn.Module:
        """Learn what is not learned yet."""
        loaded = self.restore()
        learned = int(self.results.cost.is_learned.sum())
        self.model.load_tasks(self.tasks[loaded:learned], self.earlier.library)
        if not learned:
            learned = self._settle_base()
        self.model.eval()
        starts = self._fit_prototypes(learned)
        self._seconds = self._finished_jobs(learned)
        self._take_over()
        run_graph(starts, [*self.model.expert_names, *self._seconds],
                  lambda name: self._submit(name, starts[name]), self._collect,
                  self.num_workers)
        for index in range(len(self.tasks)):
            # not before: others may start from it there
            shutil.rmtree(self._job(index).library, ignore_errors=True)
        return self.runner.model

    def _settle_base(self) -> int:
        """Give the library its base; the number of tasks that this took."""
        library = self.earlier.library
        if self.model.backbone.base_training == 'first_task':
            self.learn(0, self.tasks[0])
            return 1
        store = ExpertStore(library)
        if (library / 'library.json').exists():
            self.model.backbone.load_base(*store.load_base())
        else:
            store.save_base(self.model.backbone.base_state(),
                            self.model.backbone.fingerprint())
        return 0

    def _fit_prototypes(self, learned: int) -> Dict[str, Optional[str]]:
        """Fit a gate to all tasks; the expert that each one starts from."""
        starts: Dict[str, Optional[str]] = {}
        for index, task in enumerate(self.tasks):
            if index < learned:
                starts[task.name] = None
                self._gate.load_state(task.name,
                                      self.model.gate.state(task.name))
                continue
            embeddings = self._embed(task)
            start = start_of(task, self.model.init_from, list(starts),
                             partial(self._nearest, embeddings),
                             partial(_refuse_fused, task))
            starts[task.name] = next(iter(start)) if start else None
            self._gate.fit(task.name, embeddings)
        return starts

    def _nearest(self, embeddings: Any) -> str:
        gate: Any = self._gate
        return gate.nearest(embeddings)

    def _embed(self, task: Task) -> Optional[Tensor]:
        if not self._gate.needs_embeddings:
            return None
        loader = self.data.prototype_loader(self.runner, task,
                                            self.val_dataloader,
                                            self.max_prototype_images)
        return embed_images(self.model, loader)

    def _finished_jobs(self, learned: int) -> Dict[str, float]:
        """Seconds of the tasks that an earlier run has learned."""
        found = {}
        for index in range(learned, len(self.tasks)):
            path = self._job(index).results_path
            if path.exists():
                seconds = StreamResults.load(path).cost.train_seconds[index]
                if not np.isnan(seconds):
                    found[self.tasks[index].name] = float(seconds)
        return found

    def _submit(self, name: str, start: Optional[str]) -> 'Future[float]':
        index = [task.name for task in self.tasks].index(name)
        needed = [] if start is None else [start]
        if self.model.backbone.base_training == 'first_task':
            # only the very first expert trains the base
            needed.append(self.tasks[0].name)
        cfg = self.runner.cfg.copy()
        cfg.randomness = dict(
            cfg.get('randomness', {}), seed=self.results.seed)
        self.runner.logger.info(f'task {name!r} begins, from '
                                f'{"the base" if start is None else start}')
        return self.executor.submit(
            learn_expert,
            ExpertJob(
                cfg=cfg,
                index=index,
                start=start,
                base=self.earlier.library.resolve(),
                experts={n: self._library_of(n)
                         for n in needed},
                work_dir=self._job(index).work_dir.resolve()))

    def _collect(self, name: str, seconds: float) -> None:
        self._seconds[name] = seconds
        self.runner.logger.info(f'task {name!r} is learned')
        self._take_over()

    def _take_over(self) -> None:
        """Move what is finished to the library, in the stream's order."""
        for index in range(len(self.model.expert_names), len(self.tasks)):
            task, job = self.tasks[index], self._job(index)
            if task.name not in self._seconds:
                return
            expert = ExpertStore(job.library).load(task.name)
            expert.prototypes = self._gate.state(task.name)
            self.model.import_expert(expert)
            self._keep(index, task, self._seconds[task.name])
            mine = self.earlier.task_folder(index, task)
            if not mine.exists():
                mine.parent.mkdir(exist_ok=True)
                job.task_folder(index, task).rename(mine)

    def _job(self, index: int) -> EarlierRun:
        """Where the process that learns a task works."""
        return EarlierRun(self.earlier.work_dir / 'workers' /
                          f'{index:02d}_{self.tasks[index].name}')

    def _library_of(self, name: str) -> Path:
        if name in self.model.expert_names:
            return self.earlier.library.resolve()
        names = [task.name for task in self.tasks]
        return self._job(names.index(name)).library.resolve()


def _refuse_fused(task: Task) -> Dict[str, float]:
    raise ValueError(
        f"init_from='fused' of task {task.name!r} waits for all experts "
        "before it, so nothing could be learned at the same time: use "
        "tools/train.py, or init_from='nearest'")


def learn_experts(cfg: Config, executor: TaskExecutor,
                  num_workers: int) -> None:
    """Learn the tasks of a stream at the same time.

    Args:
        cfg (Config): Of the stream; its work dir gets library and results,
            but no evaluated row.
        executor (TaskExecutor): Where tasks run.
        num_workers (int): Tasks that run at the same time at most.

    Raises:
        ValueError: If the config trains no stream, or a method without
            experts.
        RuntimeError: If a task fails; names it and says how to go on.
    """
    runner = Runner.from_cfg(cfg)
    stream_loop(
        ParallelTaskLoop, runner, executor=executor, num_workers=num_workers)
    runner.train()
