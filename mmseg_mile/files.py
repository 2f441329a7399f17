# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are either whole or not there."""
from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Optional, Union

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

PathLike = Union[str, 'os.PathLike[str]']

# what safetensors and its loader for torch raise for headers that make no
# sense; KeyError for a type that torch has not
_NO_TENSORS = (SafetensorError, KeyError, ValueError, TypeError, RuntimeError,
               OverflowError)
# a list of plain values; no string holds a line break
_FLAT_LIST = re.compile(r'\[\n *([^\[\]{}]*?)\n *\]')
_LINE_BREAK = re.compile(r'\n *')


def write_bytes(path: PathLike, content: bytes) -> None:
    """Write a file in one step; it has reached the disk on return.

    Missing folders are created. A crash leaves an older file untouched.

    Raises:
        OSError: If the disk is full or fails; names the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path, 'partial')
    try:
        with open(partial, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        room = shutil.disk_usage(path.parent).free
        raise OSError(
            error.errno,
            f'{error.strerror or error}: {path} cannot be written. It needs '
            f'{len(content)} bytes, the disk has {room} left (a quota or '
            'limit may allow less). What was stored before is whole; make '
            'room, and go on with --resume.') from error
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: PathLike, text: str) -> None:
    """Write ``text``, see :func:`write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: PathLike, value: Any) -> None:
    """Write ``value`` as JSON, see :func:`write_bytes`.

    NaN, which JSON lacks, becomes null. A list of plain values, such as a
    row of a matrix, is one line.

    Raises:
        ValueError: If ``value`` holds an infinity.
        TypeError: If ``value`` holds something that JSON cannot say.
    """
    text = json.dumps(
        _without_nan(value), indent=2, allow_nan=False, ensure_ascii=False)
    write_text(path, _FLAT_LIST.sub(_one_line, text) + '\n')


def read_bytes(path: PathLike, checksum: Optional[str] = None) -> bytes:
    """Read a file, and check the very bytes that are used.

    Args:
        path (str | PathLike): The file.
        checksum (str, optional): Its SHA-256 when it was written. Defaults
            to None: not known.

    Raises:
        ValueError: If it has a checksum and was changed or is missing; names
            the file.
    """
    path = Path(path)
    if checksum is None:
        return path.read_bytes()
    content = path.read_bytes() if path.is_file() else b''
    if hashlib.sha256(content).hexdigest() != checksum:
        raise ValueError(f'{path} is missing or was changed since it was '
                         'written (its checksum differs): restore it from a '
                         'copy, or train its task again.')
    return content


def read_json(path: PathLike, checksum: Optional[str] = None) -> Any:
    """Parse a JSON file, see :func:`read_bytes`.

    Raises:
        ValueError: If the file is no valid JSON, or was changed; names it.
    """
    content = read_bytes(path, checksum)
    try:
        return json.loads(content.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f'{os.fspath(path)} is not valid JSON ({error}). It may be cut '
            'off or edited by hand: restore a copy, or remove it to start '
            'afresh.') from error


def printable(path: PathLike) -> str:
    """A path to show; bytes that are no UTF-8 are spelled out: ``\\xdf``."""
    return os.fsencode(path).decode('utf-8', 'backslashreplace')


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_tensors(path: PathLike, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, see :func:`write_bytes`.

    Scalars and shared storage are no trouble.
    """
    write_bytes(
        path,
        save({
            key:
            value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for key, value in tensors.items()
        }))


def read_tensors(path: PathLike,
                 checksum: Optional[str] = None) -> Dict[str, Tensor]:
    """Read a safetensors file, see :func:`read_bytes`.

    Raises:
        ValueError: If it is broken or was changed; names the file.
    """
    content = read_bytes(path, checksum)
    try:
        return load(content)
    except _NO_TENSORS as error:
        raise _unreadable(path, error) from error


def num_values(path: PathLike) -> int:
    """Values in a safetensors file, from its header alone.

    Raises:
        ValueError: If it has no such header; names the file.
    """
    try:
        with safe_open(os.fspath(path), framework='pt') as file:
            shapes = [file.get_slice(key).get_shape() for key in file.keys()]
    except (OSError, *_NO_TENSORS) as error:
        raise _unreadable(path, error) from error
    return sum(math.prod(shape) for shape in shapes)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """An empty folder that becomes ``target`` when the block ends well.

    A block that fails leaves an older ``target`` as it was.
    """
    fresh, old = _beside(target, 'new'), _beside(target, 'old')
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
    os.replace(fresh, target)
    _sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: PathLike, wait: bool = True) -> Iterator[None]:
    """Keep other processes from changing a folder.

    Args:
        folder (str | PathLike): An existing one.
        wait (bool): Whether to wait for a process that changes it. Defaults
            to True.

    Raises:
        ValueError: If one does, and is not waited for.
    """
    lock = FileLock(Path(folder) / '.lock')
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout as error:
        raise ValueError(
            f'another process writes {os.fspath(folder)}: wait until it has '
            'ended, or name another folder (--work-dir, --out)') from error
    try:
        yield
    finally:
        lock.release()


def _beside(path: Path, ending: str) -> Path:
    """A hidden neighbour; no expert's name begins with a dot."""
    return path.with_name(f'.{path.name}.{ending}')


def _sync_folder(folder: Path) -> None:
    """Wait until the disk knows which files a folder has."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unreadable(path: PathLike, error: Exception) -> ValueError:
    return ValueError(f'{os.fspath(path)} cannot be read '
                      f'({type(error).__name__}: {error}): restore it from a '
                      'copy, or train its task again.')


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _one_line(row: 're.Match[str]') -> str:
    return f'[{_LINE_BREAK.sub(" ", row[1])}]'


def _refuse_constant(name: str) -> None:
    raise ValueError(f'{name} is no JSON value, use null')
