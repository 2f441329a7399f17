# SPDX-License-Identifier: Apache-2.0
"""Contents of a library's files, and whether they were changed."""
from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any, Dict, Iterator, Optional

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

# what safetensors and its loader for torch raise for headers that make no
# sense; KeyError for a type that torch has not
_NO_TENSORS = (SafetensorError, KeyError, ValueError, TypeError, RuntimeError,
               OverflowError)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            digest.update(block)
    return digest.hexdigest()


def write_tensors(path: Path, tensors: Dict[str, Tensor]) -> None:
    """Write a safetensors file, whole or not at all.

    Scalars and shared storage are no trouble.

    Raises:
        OSError: See :func:`write_file`.
    """
    write_file(
        path,
        save({
            key:
            value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for key, value in tensors.items()
        }))


def read_tensors(path: Path, checksum: str) -> Dict[str, Tensor]:
    """Read a safetensors file after checking the very bytes that are used.

    Args:
        path (Path): The file.
        checksum (str): Its SHA-256 when it was written.

    Raises:
        ValueError: If it is missing, broken or changed; names the file.
    """
    content = _read_bytes(path, checksum)
    try:
        return load(content)
    except _NO_TENSORS as error:
        raise _unreadable(path, error) from error


def check_sum(path: Path, checksum: str) -> None:
    """Raise unless a file is what it was when it was written.

    Raises:
        ValueError: If it is missing or changed; names the file.
    """
    if not path.is_file() or sha256(path) != checksum:
        raise _changed(path)


def num_values(path: Path) -> int:
    """Values in a safetensors file, from its header alone.

    Raises:
        ValueError: If it has no such header; names the file.
    """
    try:
        with safe_open(str(path), framework='pt') as file:
            shapes = [file.get_slice(key).get_shape() for key in file.keys()]
    except (OSError, *_NO_TENSORS) as error:
        raise _unreadable(path, error) from error
    return sum(math.prod(shape) for shape in shapes)


def write_json(path: Path, content: Dict[str, Any]) -> None:
    """Write a JSON object, with its checksum, whole or not at all.

    Raises:
        OSError: See :func:`write_file`.
    """
    # once through JSON, which turns tuples to lists and keys to strings
    content = json.loads(json.dumps(content))
    write_file(path, _json_bytes(content))


def read_json(path: Path, checksum: Optional[str] = None) -> Dict[str, Any]:
    """Read what :func:`write_json` wrote, without its checksum.

    Args:
        path (Path): The file.
        checksum (str, optional): SHA-256 of the whole file when it was
            written, where it is known. Defaults to None.

    Raises:
        ValueError: If it is missing, broken or changed; names the file.
    """
    written = _read_bytes(path, checksum)
    try:
        content = json.loads(written.decode('utf-8'))
        if not isinstance(content, dict):
            raise ValueError('it holds no JSON object')
        content.pop('checksum', None)
        expected = _json_bytes(content)
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    # not a byte may differ, so that no damage passes unseen
    if written != expected:
        raise _changed(path)
    return content


def _json_bytes(content: Dict[str, Any]) -> bytes:
    plain = json.dumps(content, sort_keys=True)
    checksum = hashlib.sha256(plain.encode()).hexdigest()
    text = json.dumps(
        dict(content, checksum=checksum),
        indent=1,
        ensure_ascii=False,
        sort_keys=True)
    return (text + '\n').encode('utf-8')


def _read_bytes(path: Path, checksum: Optional[str]) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        if checksum is None or path.is_file():
            raise _unreadable(path, error) from error
        raise _changed(path) from error
    if checksum not in (None, hashlib.sha256(content).hexdigest()):
        raise _changed(path)
    return content


def _changed(path: Path) -> ValueError:
    return ValueError(f'{path} is missing or was changed since it was written '
                      '(its checksum differs): restore it from a copy, or '
                      'train its task again.')


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f'{path} cannot be read ({type(error).__name__}: '
                      f'{error}): restore it from a copy, or train its task '
                      'again.')


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
