# SPDX-License-Identifier: Apache-2.0
"""Tasks of a stream learned at the same time, in processes or with Ray."""
from __future__ import annotations

import copy
import importlib.util
import os
import shutil
import threading
from concurrent.futures import (FIRST_COMPLETED, Future, ProcessPoolExecutor,
                                ThreadPoolExecutor, wait)
from dataclasses import replace
from functools import partial
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings

from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.gates.simple_gates import FixedGate
from mmseg_mile.library.expert_store import ExpertStore
from mmseg_mile.methods.mile.lineage import initial_experts
from .incremental_task_loop import IncrementalTaskLoop
from .work_dir import WorkDir


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
        """Call ``function(*args)``."""
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


class RayExecutor:
    """Tasks of a Ray cluster, or of a Ray that starts on this machine.

    ``ray.init()`` finds the cluster, by ``RAY_ADDRESS`` for example. Every
    machine needs the data and the work dir under the same paths. A call
    gets a GPU where the cluster has any.

    Args:
        num_cpus (int): CPU cores of a call.
    """

    def __init__(self, num_cpus: int) -> None:
        import ray
        if not ray.is_initialized():
            ray.init()
        # a fresh process per call, as mmengine keeps state of a run
        self._call = ray.remote(
            num_cpus=num_cpus,
            num_gpus=1 if ray.cluster_resources().get('GPU') else 0,
            max_calls=1,
            max_retries=0)(lambda function, *args: function(*args))

    def submit(self, function: Callable[..., Any], *args:
               Any) -> 'Future[Any]':
        """Call ``function(*args)``."""
        return self._call.remote(function, *args).future()


def build_executor(engine: str, num_workers: int) -> Any:
    """The executor of a name.

    Args:
        engine (str): 'processes', 'ray', or 'auto': Ray if it is installed.
        num_workers (int): Tasks that run at the same time.

    Raises:
        ValueError: If the name is unknown, or Ray is asked for and missing.
    """
    engines = ('auto', 'processes', 'ray')
    if engine not in engines or num_workers < 1:
        raise ValueError(f'engine must be one of {engines} and num_workers '
                         f'>= 1, got {engine!r} and {num_workers}')
    has_ray = importlib.util.find_spec('ray') is not None
    if engine == 'ray' and not has_ray:
        raise ValueError("the engine 'ray' needs Ray: pip install "
                         "'mmseg_mile[ray]', or choose 'processes'")
    if has_ray and engine != 'processes':
        return RayExecutor(max(1, (os.cpu_count() or 1) // num_workers))
    return ProcessExecutor(num_workers)


def run_graph(starts: Mapping[str, Optional[str]], finished: Sequence[str],
              submit: Callable[[str], 'Future[Any]'],
              collect: Callable[[str], None], num_workers: int) -> None:
    """Run tasks as soon as those that they start from are finished.

    After a failure nothing new begins; what runs already is collected.

    Args:
        starts (Mapping): Every task, and the earlier one that it waits for.
        finished (Sequence[str]): Tasks that need not run.
        submit (Callable): Starts a task by its name.
        collect (Callable): Gets the name of each task that is done; called
            in this thread.
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
        assert running, f'tasks {waiting} start from later ones'
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            name, error = running.pop(future), future.exception()
            if error is not None:
                failed[name] = error
                continue
            collect(name)
            done.add(name)
    for name, error in failed.items():
        raise RuntimeError(
            f'task {name!r} failed: {error}\nTasks that were finished are '
            'kept: mend the cause and run the same command with '
            '--resume.') from error


def learn_expert(cfg: Config, **job: Any) -> None:
    """Learn one task with a runner of its own.

    Args:
        cfg (Config): Of the whole stream, with its seed and the work dir of
            this process.
        **job: See :class:`ExpertTaskLoop`.
    """
    import_modules_from_strings(**cfg.get('custom_imports', {}))
    _train(ExpertTaskLoop, Runner.from_cfg(cfg), num_checked=0, **job)


class ExpertTaskLoop(IncrementalTaskLoop):
    """Learns one task of the stream and evaluates nothing.

    Prototypes are left to the process that has those of all tasks, so the
    gate that a task meets here looks at no image.

    Args:
        *args: As in :class:`IncrementalTaskLoop`.
        index (int): Position of the task.
        start (str, optional): Expert that it starts from; None is the base.
        libraries (Mapping[str, Path]): Library of each expert that is
            needed, and under '' that of the base.
        **kwargs: As in :class:`IncrementalTaskLoop`.
    """

    def __init__(self, *args: Any, index: int, start: Optional[str],
                 libraries: Mapping[str, Path], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.index = index
        self.start = start
        self.stores = {n: ExpertStore(path) for n, path in libraries.items()}

    def learn_stream(self) -> None:
        """Learn the task, unless an earlier process has."""
        model: Any = self.model
        task = self.tasks[self.index]
        self.restore()
        if not self.results.cost.is_learned[self.index]:
            model.backbone.load_base(*self.stores.pop('').load_base())
            with model.gated(FixedGate(task.name)):
                for name, store in self.stores.items():
                    model.import_experts(store.open([name]))
                self.learn(self.index,
                           replace(task, init_from=self.start or 'base'))


class ParallelTaskLoop(IncrementalTaskLoop):
    """Learns every task of a stream, each in a process of its own.

    An expert needs the frozen base and the expert it starts from. Which one
    that is, and every prototype, follows from the base alone; so prototypes
    come first, and then each task begins when the one that it starts from is
    finished. ``--resume`` of the sequential loop has only to evaluate.

    Args:
        *args: As in :class:`IncrementalTaskLoop`.
        executor (Any): Its ``submit`` runs a call and returns a future.
        num_workers (int): Tasks that run at the same time at most.
        **kwargs: As in :class:`IncrementalTaskLoop`.

    Raises:
        ValueError: If the method has no experts, or takes them over.
    """

    model: Any

    def __init__(self, *args: Any, executor: Any, num_workers: int,
                 **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.model.supports_parallel:
            raise ValueError(
                f'{type(self.model).__name__} keeps no experts over a frozen '
                'base: what it learns of a task depends on all tasks before '
                'it, so tasks cannot be learned at the same time. Use '
                'tools/train.py, or an ExpertSegmentor.')
        if self.reused:
            raise ValueError(
                'train_cfg.experts_from takes experts over, which leaves '
                'nothing to learn at the same time: use tools/train.py, or '
                'leave it out')
        self.executor = executor
        self.num_workers = num_workers
        self.names: List[str] = [task.name for task in self.tasks]

    def learn_stream(self) -> None:
        """Learn what is not learned yet."""
        loaded, library = self.restore(), self.work_dir.library
        learned = int(self.results.cost.is_learned.sum())
        self.model.load_tasks(self.tasks[loaded:learned], library)
        if not learned:
            learned = self._prepare_base()
        self.model.eval()
        # of all tasks, where the model's has those of finished ones
        self._gate: Any = copy.deepcopy(self.model.gate)
        starts = {name: self._fit_gate(name) for name in self.names[learned:]}
        self._import_finished()
        finished = [n for n in self.names if self._seconds(n) is not None]
        run_graph(starts, [*self.model.expert_names, *finished],
                  lambda name: self._submit(name, starts[name]), self._collect,
                  self.num_workers)
        for name in self.names:
            # not before: others may start from it there
            shutil.rmtree(self._worker(name).library, ignore_errors=True)

    def _prepare_base(self) -> int:
        """Give the library its base; returns the tasks that this learned."""
        library, backbone = self.work_dir.library, self.model.backbone
        if backbone.base_training == 'first_task':
            self.learn(0, self.tasks[0])
            return 1
        store = ExpertStore(library)
        if (library / 'library.json').exists():
            backbone.load_base(*store.load_base())
        else:
            store.save_base(backbone.base_state(), backbone.fingerprint())
        return 0

    def _fit_gate(self, name: str) -> Optional[str]:
        """Fit the gate to a task; returns the expert that it starts from."""
        index = self.names.index(name)
        task = self.tasks[index]
        embeddings: Any = None
        if self._gate.needs_embeddings:
            embeddings = self.model.embed_images(
                self.data.prototype_loader(self.runner, task,
                                           self.val_dataloader,
                                           self.max_prototype_images))
        start = initial_experts(task, self.model.init_from, self.names[:index],
                                self._gate, lambda: embeddings)
        if len(start) > 1:
            raise ValueError(
                f"init_from='fused' of task {name!r} waits for {list(start)}, "
                'but a task that is learned beside others waits for one: use '
                "tools/train.py, or init_from='nearest'")
        self._gate.fit(name, embeddings)
        return next(iter(start), None)

    def _submit(self, name: str, start: Optional[str]) -> 'Future[Any]':
        needed = [] if start is None else [start]
        if self.model.backbone.base_training == 'first_task':
            # only the very first expert trains the base
            needed.append(self.names[0])
        library = self.work_dir.library.resolve()
        libraries = {'': library}
        for each in needed:
            is_kept = each in self.model.expert_names
            libraries[each] = library if is_kept else self._worker(
                each).library.resolve()
        cfg = self.runner.cfg.copy()
        cfg.randomness = dict(
            cfg.get('randomness', {}), seed=self.results.seed)
        cfg.work_dir = str(self._worker(name).path.resolve())
        cfg.resume = True
        self.runner.logger.info(f'task {name!r} begins, from '
                                f'{"the base" if start is None else start}')
        call = partial(
            learn_expert,
            index=self.names.index(name),
            start=start,
            libraries=libraries)
        return self.executor.submit(call, cfg)

    def _collect(self, name: str) -> None:
        self.runner.logger.info(f'task {name!r} is learned')
        self._import_finished()

    def _import_finished(self) -> None:
        """Move what is finished to the library, in the stream's order."""
        for index in range(len(self.model.expert_names), len(self.tasks)):
            task = self.tasks[index]
            worker, seconds = self._worker(task.name), self._seconds(task.name)
            if seconds is None:
                return
            expert = ExpertStore(worker.library).load(task.name)
            prototypes = self._gate.state(task.name)
            self.model.import_expert(
                replace(
                    expert, parts=dict(expert.parts, prototypes=prototypes)))
            self.keep(index, task, seconds)
            folder = self.work_dir.task_folder(index, task)
            if not folder.exists():
                folder.parent.mkdir(exist_ok=True)
                worker.task_folder(index, task).rename(folder)

    def _seconds(self, name: str) -> Optional[float]:
        """Training time of a task that a process has learned."""
        path = self._worker(name).results_path
        if path.exists():
            cost = StreamResults.load(path).cost
            seconds = float(cost.train_seconds[self.names.index(name)])
            return None if np.isnan(seconds) else seconds
        return None

    def _worker(self, name: str) -> WorkDir:
        """Work dir of the process that learns a task."""
        folder = f'{self.names.index(name):02d}_{name}'
        return WorkDir(self.work_dir.path / 'workers' / folder)


def learn_experts(cfg: Config, executor: Any, num_workers: int) -> None:
    """Learn the tasks of a stream at the same time, but evaluate nothing.

    Args:
        cfg (Config): Of the stream; its work dir gets library and results.
        executor (Any): See :func:`build_executor`.
        num_workers (int): Tasks that run at the same time at most.

    Raises:
        ValueError: If the config trains no stream, or a method without
            experts.
        RuntimeError: If a task fails; names it and says how to go on.
    """
    kind = cfg.train_cfg.get('type')
    if kind != 'IncrementalTaskLoop':
        raise ValueError('train_cfg.type must be IncrementalTaskLoop to learn '
                         f'the tasks of a stream, got {kind!r}')
    _train(
        ParallelTaskLoop,
        Runner.from_cfg(cfg),
        executor=executor,
        num_workers=num_workers)


def _train(kind: Any, runner: Runner, **changes: Any) -> None:
    """Train with another loop over the stream of the runner's config.

    The config itself, which experts and results quote, stays as it is.
    """
    settings = {k: v for k, v in runner.cfg.train_cfg.items() if k != 'type'}
    settings.update(dataloader=runner.cfg.train_dataloader, **changes)
    runner._train_loop = kind(runner, **settings)
    runner.train()
