# SPDX-License-Identifier: Apache-2.0
"""One writer at a time."""
from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Iterator


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until no other process changes a folder, and keep it so.

    The lock is the operating system's and leaves no file behind; a process
    that is killed gives it back.

    Args:
        folder (Path): An existing one.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        # closing alone would leave it to a process that was forked meanwhile
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
