# SPDX-License-Identifier: Apache-2.0
"""Which task waits for which, and running them in that order."""
from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, Callable, Dict, Mapping, Optional, Sequence


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
