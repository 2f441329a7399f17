# SPDX-License-Identifier: Apache-2.0
"""Whole models on disk, for methods without experts."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Sequence, Tuple

from mmseg_mile.structures.expert import TensorDict
from .disk_writes import finish_swap, new_folder
from .files import read_json, read_tensors, sha256, write_json, write_tensors

_FILE = 'model.safetensors'
_RECORD = 'model.json'
_SCHEMA = 2
_FIELDS = dict(classes=list, palette=list, provenance=dict, files=dict)


def save_model(folder: Path, state: TensorDict, classes: Sequence[str],
               palette: Sequence[Sequence[int]],
               provenance: Dict[str, Any]) -> None:
    """Write a state dict and its label space; whole or not at all.

    Raises:
        OSError: If the disk is full or fails; an older model stays whole.
    """
    with new_folder(folder) as partial:
        write_tensors(partial / _FILE, state)
        write_json(
            partial / _RECORD,
            dict(
                schema=_SCHEMA,
                name=folder.name,
                classes=classes,
                palette=palette,
                provenance=provenance,
                files={_FILE: sha256(partial / _FILE)}))


def load_model(
    folder: Path
) -> Tuple[TensorDict, Tuple[str, ...], Tuple[Tuple[int, ...], ...]]:
    """Read what :func:`save_model` wrote.

    Returns:
        tuple: State dict, classes and palette.

    Raises:
        ValueError: If a file is missing, broken or changed; names it.
    """
    finish_swap(folder)
    record = _read_record(folder)
    return (read_tensors(folder / _FILE,
                         record['files'][_FILE]), tuple(record['classes']),
            tuple(tuple(c) for c in record['palette']))


def _read_record(folder: Path) -> Dict[str, Any]:
    path = folder / _RECORD
    record = read_json(path)
    if record.get('schema') != _SCHEMA:
        raise ValueError(f'{path} is not of schema {_SCHEMA}')
    if record.get('name') != folder.name:
        raise ValueError(f'{path} belongs to model {record.get("name")!r}, '
                         f'not to folder {folder.name!r}')
    wrong = [
        key for key, kind in _FIELDS.items()
        if not isinstance(record.get(key), kind)
    ]
    if wrong or _FILE not in record['files'] or not all(
            isinstance(colour, list) for colour in record['palette']):
        raise ValueError(f'{path} must hold {sorted(_FIELDS)}, wrong are '
                         f'{wrong or ["files", "palette"]}: restore it from '
                         'a copy, or train its task again.')
    return record
