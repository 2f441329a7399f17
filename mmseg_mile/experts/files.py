# SPDX-License-Identifier: Apache-2.0
"""Contents of a library's files, and whether they were changed."""
from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Dict, Optional

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from .disk_writes import write_file

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
