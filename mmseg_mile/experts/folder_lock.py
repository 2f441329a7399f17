# SPDX-License-Identifier: Apache-2.0
"""One writer at a time."""
from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Iterator


@contextlib.contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Keep other processes from changing a folder.

    The lock is the operating system's and leaves no file behind; a process
    that is killed gives it back.

    Args:
        folder (Path): An existing one.
        wait (bool): Whether to wait for a process that changes it. Defaults
            to True.

    Raises:
        ValueError: If one does, and is not waited for.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _acquire(descriptor, folder, wait)
        yield
    finally:
        # closing alone would leave it to a process that was forked meanwhile
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _acquire(descriptor: int, folder: Path, wait: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        raise ValueError(
            f'another process writes {folder}: wait until it has ended, or '
            'name another folder') from error
