# SPDX-License-Identifier: Apache-2.0
"""Whole models on disk, for methods without experts."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Sequence, Tuple

from mmseg_mile.structures.expert import TensorDict
from .files import (new_folder, read_json, read_tensors, sha256, write_json,
                    write_tensors)

_FILE = 'model.safetensors'


def save_model(folder: Path, state: TensorDict, classes: Sequence[str],
               palette: Sequence[Sequence[int]],
               provenance: Dict[str, Any]) -> None:
    """Write a state dict and its label space; whole or not at all."""
    with new_folder(folder) as partial:
        write_tensors(partial / _FILE, state)
        write_json(
            partial / 'model.json',
            dict(
                schema=1,
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
    record = read_json(folder / 'model.json')
    if not isinstance(record, dict) or record.get('schema') != 1:
        raise ValueError(f'{folder / "model.json"} is not of schema 1')
    path = folder / _FILE
    if not path.is_file() or sha256(path) != record['files'][_FILE]:
        raise ValueError(f'{path} is missing or was changed since it was '
                         'written: restore it, or train its task again.')
    return (read_tensors(path), tuple(record['classes']),
            tuple(tuple(c) for c in record['palette']))
