# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear whole, or not at all."""
from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import Iterator

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_file(path: Path, content: bytes) -> None:
    """Write a file in one step; it has reached the disk on return.

    Args:
        path (Path): The file; an older one is replaced.
        content (bytes): All of it.

    Raises:
        OSError: If the disk is full or fails, naming the file and the bytes
            that it needs and the disk has left; an older file stays whole.
    """
    partial = _beside(path, 'partial')
    with _explained(path, len(content)):
        try:
            with open(partial, 'wb') as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            sync_folder(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Wait until the disk knows which files a folder has."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def fresh_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside ``target``, gone if the block fails.

    :func:`swap_in` puts it in the place of ``target``. What a killed process
    left in it is removed first.
    """
    fresh = pending(target)
    with _explained(fresh):
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        sync_folder(fresh.parent)
    try:
        yield fresh
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def pending(target: Path) -> Path:
    """Where :func:`fresh_folder` makes the folder for ``target``."""
    return _beside(target, 'new')


def swap_in(target: Path) -> None:
    """Put the finished folder beside ``target`` in its place.

    That takes two renames where there is an older folder. Where a process is
    killed between them, a second call finishes what it began.

    Raises:
        OSError: If a rename fails; the older folder is back then.
    """
    old = _beside(target, 'old')
    with _explained(target):
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(target, old)
        try:
            os.replace(pending(target), target)
        except BaseException:
            if old.exists():
                os.replace(old, target)
            raise
        sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder that becomes ``target`` when the block ends well.

    A block that fails, or is killed, leaves an older ``target`` as it was.
    """
    finish_swap(target)
    with fresh_folder(target) as fresh:
        yield fresh
        swap_in(target)


def finish_swap(target: Path) -> None:
    """Bring ``target`` back where a killed process had just moved it."""
    if not target.exists() and _beside(target, 'old').exists():
        swap_in(target)


def _beside(path: Path, what: str) -> Path:
    """A hidden neighbour; no expert's name begins with a dot."""
    return path.with_name(f'.{path.name}.{what}')


@contextlib.contextmanager
def _explained(path: Path, num_bytes: int = 0) -> Iterator[None]:
    """Say which file could not be written, and what would help."""
    try:
        yield
    except OSError as error:
        reason = f'{error.strerror or error}: {path} cannot be written'
        if error.errno in _NO_ROOM:
            reason += (f'. It needs {num_bytes} bytes, the disk has '
                       f'{_room(path)} left (a quota or limit may allow '
                       'less): make room')
        raise OSError(
            error.errno, f'{reason}. What was stored before is whole; '
            'go on with --resume.') from error


def _room(path: Path) -> int:
    """Bytes left on the disk of a file that need not exist."""
    folder = next(p for p in path.absolute().parents if p.exists())
    return shutil.disk_usage(folder).free
