# SPDX-License-Identifier: Apache-2.0
"""Where tasks run: processes of this machine, or Ray."""
from __future__ import annotations

import importlib.util
import os
import shutil
import threading
from concurrent.futures import (FIRST_COMPLETED, Future, ProcessPoolExecutor,
                                ThreadPoolExecutor, wait)
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Callable, Dict, Mapping, Optional, Protocol, Sequence

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings
from torch import Tensor, nn

from mmseg.registry import TASK_UTILS
from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.gates.base_gate import BaseGate
from mmseg_mile.gates.simple_gates import FixedGate
from mmseg_mile.library.expert_store import ExpertStore
from mmseg_mile.methods.mile.expert_segmentor import (ExpertSegmentor,
                                                      initial_experts)
from mmseg_mile.structures import Task
from .incremental_task_loop import IncrementalTaskLoop
from .work_dir import WorkDir

ENGINES = ('auto', 'processes', 'ray')


class TaskExecutor(Protocol):
    """What a scheduler asks of an engine."""

    def submit(self, function: Callable[..., Any], *args:
               Any) -> 'Future[Any]':
        """Call ``function(*args)`` in a process of its own."""


class ProcessExecutor:
    """A fresh process of this machine for every call.

    A process that is killed fails its own call only, and none outlives this
    one. With GPUs, the calls that run at the same time take turns on them.

    Args:
        num_workers (int): Calls that run at the same time.
    """

    def __init__(self, num_workers: int) -> None:
        self._threads = ThreadPoolExecutor(num_workers)
        self._slots: 'SimpleQueue[int]' = SimpleQueue()
        for slot in range(num_workers):
            self._slots.put(slot)

    def submit(self, function: Callable[..., Any], *args:
               Any) -> 'Future[Any]':
        """See :class:`TaskExecutor`."""
        return self._threads.submit(self._call, function, args)

    def _call(self, function: Callable[..., Any], args: Any) -> Any:
        slot = self._slots.get()
        try:
            # a forked copy of a process with threads may hang
            with ProcessPoolExecutor(1, get_context('spawn'), _prepare,
                                     (slot, )) as pool:
                return pool.submit(function, *args).result()
        finally:
            self._slots.put(slot)


class RayExecutor:
    """Tasks of a Ray cluster, or of a Ray that starts on this machine.

    ``ray.init()`` finds the cluster, by ``RAY_ADDRESS`` for example. Every
    machine needs the data and the work dir under the same paths. A call
    gets a GPU where the cluster has any.

    Args:
        num_cpus (int): CPU cores of a call.

    Raises:
        ValueError: If Ray is not installed.
    """

    def __init__(self, num_cpus: int) -> None:
        if importlib.util.find_spec('ray') is None:
            raise ValueError("the engine 'ray' needs Ray: pip install "
                             "'mmseg_mile[ray]', or choose 'processes'")
        import ray
        if not ray.is_initialized():
            ray.init()
        # a fresh process per call, as mmengine keeps state of a run
        self._call = ray.remote(
            num_cpus=num_cpus,
            num_gpus=1 if ray.cluster_resources().get('GPU') else 0,
            max_calls=1,
            max_retries=0)(
                _apply)

    def submit(self, function: Callable[..., Any], *args:
               Any) -> 'Future[Any]':
        """See :class:`TaskExecutor`."""
        return self._call.remote(function, *args).future()


def build_executor(engine: str, num_workers: int) -> TaskExecutor:
    """The engine of a name.

    Args:
        engine (str): 'processes', 'ray', or 'auto': Ray if it is installed.
        num_workers (int): Tasks that run at the same time.

    Raises:
        ValueError: If the name is unknown, or Ray is asked for and missing.
    """
    if engine not in ENGINES or num_workers < 1:
        raise ValueError(f'engine must be one of {ENGINES} and num_workers '
                         f'>= 1, got {engine!r} and {num_workers}')
    has_ray = importlib.util.find_spec('ray') is not None
    if engine == 'ray' or engine == 'auto' and has_ray:
        return RayExecutor(max(1, (os.cpu_count() or 1) // num_workers))
    return ProcessExecutor(num_workers)


def _apply(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _prepare(slot: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if torch.cuda.is_available():
        torch.cuda.set_device(slot % torch.cuda.device_count())


def _end_with_parent() -> None:
    # an orphan would write to the folder of the task that is resumed
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def run_graph(starts: Mapping[str, Optional[str]], finished: Sequence[str],
              submit: Callable[[str], 'Future[Any]'],
              collect: Callable[[str, Any], None], num_workers: int) -> None:
    """Run tasks as soon as those that they start from are finished.

    After a failure nothing new begins; what runs already is collected.

    Args:
        starts (Mapping): Every task, and the one that it waits for.
        finished (Sequence[str]): Tasks that need not run.
        submit (Callable): Starts a task by its name.
        collect (Callable): Gets name and result of each task that is done;
            called in this thread.
        num_workers (int): Tasks that run at the same time at most.

    Raises:
        RuntimeError: If a task fails; names it and says how to go on.
    """
    done = {None, *finished}
    waiting = [name for name in starts if name not in done]
    running: Dict['Future[Any]', str] = {}
    failed: Dict[str, BaseException] = {}
    while running or (waiting and not failed):
        ready = [name for name in waiting if starts[name] in done]
        free = 0 if failed else num_workers - len(running)
        for name in ready[:free]:
            waiting.remove(name)
            running[submit(name)] = name
        if not running:
            raise ValueError(f'tasks {waiting} wait for each other, or for '
                             f'tasks that are not there: {dict(starts)}')
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            name, error = running.pop(future), future.exception()
            if error is not None:
                failed[name] = error
                continue
            collect(name, future.result())
            done.add(name)
    for name, error in failed.items():
        raise RuntimeError(
            f'task {name!r} failed: {error}\nTasks that were finished are '
            'kept: mend the cause and run the same command with '
            '--resume.') from error


@dataclass(frozen=True)
class ExpertJob:
    """What a process must know to learn one task.

    Args:
        cfg (Config): Of the whole stream, with its seed.
        index (int): Position of the task.
        start (str, optional): Expert that it starts from; None is the base.
        base (Path): Library whose base is used.
        experts (dict[str, Path]): Experts to load, and their libraries.
        work_dir (Path): Where the process works; kept for ``--resume``.
    """
    cfg: Config
    index: int
    start: Optional[str]
    base: Path
    experts: Dict[str, Path]
    work_dir: Path


class ExpertTaskLoop(IncrementalTaskLoop):
    """Learns one task of the stream and evaluates nothing.

    Prototypes are left to the process that has those of all tasks, so the
    gate that a task meets here looks at no image.

    Args:
        *args: As in :class:`IncrementalTaskLoop`.
        job (ExpertJob): What to learn.
        **kwargs: As in :class:`IncrementalTaskLoop`.
    """

    def __init__(self, *args: Any, job: ExpertJob, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.job = job

    def run(self) -> nn.Module:
        """Learn the task, unless an earlier process has."""
        job, task = self.job, self.tasks[self.job.index]
        self.restore()
        if self.results.cost.is_learned[job.index]:
            return self.runner.model
        model = self.model
        assert isinstance(model, ExpertSegmentor)
        model.backbone.load_base(*ExpertStore(job.base).load_base())
        with model.gated(FixedGate(task.name)):
            for name, library in job.experts.items():
                model.import_experts(ExpertStore(library).open([name]))
            self.learn(job.index, replace(task, init_from=job.start or 'base'))
        return self.runner.model


def learn_expert(job: ExpertJob) -> float:
    """Learn one task with a runner of its own.

    Args:
        job (ExpertJob): The task.

    Returns:
        float: Seconds that the training took.
    """
    import_modules_from_strings(**job.cfg.get('custom_imports', {}))
    cfg = job.cfg.copy()
    cfg.work_dir, cfg.resume = str(job.work_dir), True
    runner = Runner.from_cfg(cfg)
    loop = stream_loop(ExpertTaskLoop, runner, job=job, num_checked=0)
    runner.train()
    return float(loop.results.cost.train_seconds[job.index])


def stream_loop(kind: Any, runner: Runner,
                **changes: Any) -> IncrementalTaskLoop:
    """Give a runner another loop over the stream of its config.

    The config itself, which experts and results quote, stays as it is.

    Args:
        kind (type): A subclass of ``IncrementalTaskLoop``.
        runner (Runner): Whose loop was not built yet.
        **changes: Arguments that differ from ``train_cfg``, or are new.

    Raises:
        ValueError: If the config trains no stream.
    """
    settings = dict(runner.cfg.train_cfg)
    if settings.pop('type', None) != 'IncrementalTaskLoop':
        raise ValueError(
            'train_cfg.type must be IncrementalTaskLoop to learn the tasks '
            f'of a stream, got {runner.cfg.train_cfg.get("type")!r}')
    settings.update(dataloader=runner.cfg.train_dataloader, **changes)
    runner._train_loop = kind(runner, **settings)
    return runner._train_loop


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
            if starts and (task.init_from or self.model.init_from) == 'fused':
                _refuse_fused(task)
            start = initial_experts(task, self.model.init_from, list(starts),
                                    self._gate, partial(_embedded, embeddings))
            starts[task.name] = next(iter(start), None)
            self._gate.fit(task.name, embeddings)
        return starts

    def _embed(self, task: Task) -> Optional[Tensor]:
        if not self._gate.needs_embeddings:
            return None
        loader = self.data.prototype_loader(self.runner, task,
                                            self.val_dataloader,
                                            self.max_prototype_images)
        return self.model.embed_images(loader)

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

    def _job(self, index: int) -> WorkDir:
        """Where the process that learns a task works."""
        return WorkDir(self.earlier.work_dir / 'workers' /
                       f'{index:02d}_{self.tasks[index].name}')

    def _library_of(self, name: str) -> Path:
        if name in self.model.expert_names:
            return self.earlier.library.resolve()
        names = [task.name for task in self.tasks]
        return self._job(names.index(name)).library.resolve()


def _embedded(embeddings: Any) -> Any:
    return embeddings


def _refuse_fused(task: Task) -> None:
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
