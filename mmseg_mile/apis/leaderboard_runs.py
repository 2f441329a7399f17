# SPDX-License-Identifier: Apache-2.0
"""Runs of a leaderboard, each in a process of its own."""
from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import (Any, Callable, Dict, Iterator, List, NamedTuple, Optional,
                    Sequence)

import torch

from .leaderboard_plan import PlannedRun

_POLL_SECONDS = 0.1
# Between the polite signal and the other one.
_GRACE_SECONDS = 10.0
_TAIL_LINES = 20


class FailedRun(NamedTuple):
    """A run that did not finish, why, and the end of what it printed."""
    name: str
    reason: str
    output: str


class _Active(NamedTuple):
    run: PlannedRun
    process: subprocess.Popen
    started: float
    slot: int


class LeaderboardRuns:
    """Runs what is not finished, some at a time, in the order of the plan.

    A run that takes over the experts of another one waits for it. A run that
    fails stops only those that wait for it. Whatever ends :meth:`run_all`
    ends the processes first; the runs go on from their snapshots when it is
    called again.

    Args:
        plan (Sequence[PlannedRun]): All runs.
        command (Sequence[str]): Program that trains; gets the arguments of
            a run.
        root (Path): Only one leaderboard at a time may run in it.
        jobs (int): Runs at the same time. Defaults to 1.
        on_finished (Callable, optional): Called after each run that
            finished. Defaults to None.
        say (Callable): Gets lines of progress. Defaults to ``print``.

    Raises:
        ValueError: If ``jobs`` is less than 1.
    """

    def __init__(self,
                 plan: Sequence[PlannedRun],
                 command: Sequence[str],
                 root: Path,
                 jobs: int = 1,
                 on_finished: Optional[Callable[[], object]] = None,
                 say: Callable[[str], object] = print) -> None:
        if jobs < 1:
            raise ValueError(f'--jobs must be at least 1, got {jobs}')
        self._plan = list(plan)
        self._command = list(command)
        self._root = root
        self._jobs = jobs
        self._on_finished = on_finished or (lambda: None)
        self._say = say
        self._waiting: List[PlannedRun] = []
        self._active: List[_Active] = []
        self._failed: Dict[Path, FailedRun] = {}
        self._seconds: List[float] = []

    def run_all(self) -> List[FailedRun]:
        """Run until nothing is left to run.

        Returns:
            list[FailedRun]: With the end of what each of them printed.

        Raises:
            ValueError: If another leaderboard runs in the same folder.
            KeyboardInterrupt: After SIGINT, SIGTERM or SIGHUP.
        """
        self._waiting = [run for run in self._plan if run.results is None]
        done = len(self._plan) - len(self._waiting)
        if done:
            self._say(f'{done} of {len(self._plan)} runs are finished already')
        with _only_one(self._root) as lock, _Interrupts() as interrupts:
            try:
                while self._waiting or self._active:
                    self._start(lock)
                    time.sleep(_POLL_SECONDS)
                    self._collect()
                    interrupts.check()
            finally:
                self._stop(interrupts)
        return list(self._failed.values())

    def _start(self, lock: int) -> None:
        while len(self._active) < self._jobs and self._waiting:
            run = self._next()
            if run is None:
                return
            self._waiting.remove(run)
            slots = {active.slot for active in self._active}
            slot = min(set(range(self._jobs)) - slots)
            log = _log_path(run)
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, 'wb') as file:
                process = subprocess.Popen(
                    [*self._command, *run.arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=_environment(slot, self._jobs),
                    # a Ctrl-C reaches this process alone, which passes it on
                    start_new_session=True,
                    # held by runs that outlive this process
                    pass_fds=[lock])
            self._active.append(_Active(run, process, time.monotonic(), slot))
            self._say(f'{run.name} starts, see {log}')

    def _next(self) -> Optional[PlannedRun]:
        """The first run that waits for none; fails those that cannot."""
        open_dirs = {run.work_dir.resolve() for run in self._waiting}
        open_dirs |= {a.run.work_dir.resolve() for a in self._active}
        for run in list(self._waiting):
            source = run.needs and run.needs.resolve()
            if source in self._failed:
                self._waiting.remove(run)
                self._fail(run, f'{run.needs}, whose experts it needs, failed')
            elif source not in open_dirs:
                return run
        if self._waiting and not self._active:
            for run in self._waiting:
                self._fail(run, f'{run.needs} waits for it, and it for that')
            self._waiting = []
        return None

    def _collect(self) -> None:
        for active in list(self._active):
            status = active.process.poll()
            if status is None:
                continue
            self._active.remove(active)
            _end(active.process)
            run, seconds = active.run, time.monotonic() - active.started
            results = run.results if status == 0 else None
            if results is None:
                self._fail(run, _ending(status), _tail(_log_path(run)))
                continue
            self._seconds.append(seconds)
            average = results.scores['average_miou']
            self._progress(f'{run.name}: average mIoU {average:.1f} %, '
                           f'took {_duration(seconds)}')
            self._on_finished()

    def _fail(self, run: PlannedRun, reason: str, output: str = '') -> None:
        self._failed[run.work_dir.resolve()] = FailedRun(
            run.name, reason, output)
        self._progress(f'{run.name} FAILED: {reason}')

    def _progress(self, text: str) -> None:
        left = len(self._waiting) + len(self._active)
        total = len(self._plan)
        eta = ''
        if left and self._seconds:
            mean = sum(self._seconds) / len(self._seconds)
            eta = f', some {_duration(mean * left / self._jobs)} to go'
        self._say(f'[{total - left}/{total}] {text}{eta}')

    def _stop(self, interrupts: '_Interrupts') -> None:
        """End what is running; a second Ctrl-C shortens the wait."""
        for active in self._active:
            _signal(active.process, signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_SECONDS
        while (any(active.process.poll() is None for active in self._active)
               and time.monotonic() < deadline and interrupts.count < 2):
            time.sleep(_POLL_SECONDS)
        for active in self._active:
            _end(active.process)
        self._active = []


class _Interrupts:
    """Signals are noted, and obeyed between two steps.

    Else one could come between the start of a process and the moment that
    it is known. What a shell has told this process to ignore stays ignored.
    """

    def __init__(self) -> None:
        self.count = 0
        self._handlers: Dict[int, Any] = {}

    def __enter__(self) -> '_Interrupts':
        # Python handles signals in its main thread alone
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._handlers[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise a KeyboardInterrupt if there was a signal."""
        if self.count:
            raise KeyboardInterrupt

    def _note(self, *signalled: Any) -> None:
        self.count += 1


@contextlib.contextmanager
def _only_one(root: Path) -> Iterator[int]:
    """Hold the folder; two processes must not write one work dir."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / '.leaderboard.lock'
    with open(path, 'w', encoding='utf-8') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f'{path} is held: another leaderboard, or a run that outlived '
                'one, works in this folder. Wait for it or end it.') from error
        yield file.fileno()


def _environment(slot: int, jobs: int) -> Dict[str, str]:
    """Cores and GPUs shared out among the runs at the same time."""
    environment = dict(os.environ, PYTHONUNBUFFERED='1')
    if jobs > 1:
        cores = len(os.sched_getaffinity(0))
        environment.setdefault('OMP_NUM_THREADS', str(max(1, cores // jobs)))
        named = environment.get('CUDA_VISIBLE_DEVICES')
        gpus = (
            named.split(',') if named else
            [str(index) for index in range(torch.cuda.device_count())])
        if len(gpus) > 1:
            environment['CUDA_VISIBLE_DEVICES'] = gpus[slot % len(gpus)]
    return environment


def _signal(process: subprocess.Popen, number: int) -> None:
    # the session of the process holds its data loaders as well
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _end(process: subprocess.Popen) -> None:
    """Leave nothing of a session behind."""
    _signal(process, signal.SIGKILL)
    process.wait()


def _ending(status: int) -> str:
    if status < 0:
        return (f'killed by signal {-status}' +
                (' (out of memory?)' if status == -signal.SIGKILL else ''))
    if status == 0:
        return 'ended without having finished its tasks'
    return f'exit status {status}'


def _log_path(run: PlannedRun) -> Path:
    return run.work_dir.with_name(f'{run.work_dir.name}.log')


def _tail(path: Path) -> str:
    lines = path.read_text(encoding='utf-8', errors='replace').splitlines()
    return '\n'.join([f'the end of {path}:', *lines[-_TAIL_LINES:]])


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
