# SPDX-License-Identifier: Apache-2.0
"""JSON files that are either whole or not there."""
from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any, Union

PathLike = Union[str, 'os.PathLike[str]']


def write_json(path: PathLike, value: Any) -> None:
    """Write ``value`` as JSON, see :func:`write_text`.

    NaN, which JSON lacks, becomes null.

    Raises:
        ValueError: If ``value`` holds an infinity.
        OSError: If the disk is full or fails; names the file.
        TypeError: If ``value`` holds something that JSON cannot say.
    """
    write_text(path, format_json(value) + '\n')


def write_text(path: PathLike, text: str) -> None:
    """Write ``text`` so that a crash leaves the old file untouched.

    The text goes to a temporary file in the same folder, is flushed to the
    disk and then takes the place of the old file in one step. Missing
    folders are created.

    Raises:
        OSError: If the disk is full or fails; names the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.partial')
    try:
        with open(temporary, 'w', encoding='utf-8') as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        room = shutil.disk_usage(path.parent).free
        raise OSError(
            error.errno,
            f'{error.strerror or error}: {path} cannot be written. It '
            f'needs {len(text.encode())} bytes, the disk has {room} left. '
            'What was stored before is whole; make room, and go on with '
            '--resume.') from error
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: PathLike) -> Any:
    """Parse the file at ``path``.

    Raises:
        ValueError: If the file is no valid JSON; names the file.
        FileNotFoundError: If there is no such file.
    """
    try:
        with open(path, encoding='utf-8') as file:
            return json.load(file, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f'{os.fspath(path)} is not valid JSON ({error}). It may be cut '
            'off or edited by hand: restore a copy, or remove it to start '
            'afresh.') from error


def format_json(value: Any, indent: str = '') -> str:
    """JSON with one key per line, and one list item per line.

    A list of plain values stays on one line, and so does each item of a
    list, so that the rows of a matrix stand below each other.
    """
    inner = indent + '  '
    if isinstance(value, dict) and value:
        lines = [
            f'{inner}{_compact(str(key))}: {format_json(item, inner)}'
            for key, item in value.items()
        ]
        return '{\n' + ',\n'.join(lines) + f'\n{indent}}}'
    if isinstance(value, (list, tuple)) and any(
            isinstance(item, (dict, list, tuple)) for item in value):
        lines = [inner + _compact(item) for item in value]
        return '[\n' + ',\n'.join(lines) + f'\n{indent}]'
    return _compact(value)


def _compact(value: Any) -> str:
    return json.dumps(_without_nan(value), allow_nan=False, ensure_ascii=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _refuse_constant(name: str) -> None:
    raise ValueError(f'{name} is no JSON value, use null')
