# SPDX-License-Identifier: Apache-2.0
"""Where tasks run: processes of this machine, or Ray."""
from __future__ import annotations

import importlib.util
import os
import threading
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import connection, get_context, parent_process
from queue import SimpleQueue
from typing import Any, Callable, Protocol

import torch

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
