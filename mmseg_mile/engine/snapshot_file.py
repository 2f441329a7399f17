# SPDX-License-Identifier: Apache-2.0
"""One nested state in one file: safetensors with JSON in its header."""
from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Dict

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mmseg_mile.experts.disk_writes import write_file
from .state_tree import pack, unpack

_SCHEMA = 1


def write_snapshot(path: Path, state: Dict[str, Any]) -> None:
    """Write a state in one step; an older one stays until then.

    Args:
        path (Path): The file.
        state (dict): As in :func:`pack`.

    Raises:
        OSError: If the disk is full or fails; names the file.
        ValueError: If the state holds something that is no plain data.
    """
    tensors: Dict[str, Tensor] = {}
    text = json.dumps(
        dict(schema=_SCHEMA, state=pack(state, tensors, 'state')))
    tensors = {
        k: v.detach().to('cpu', copy=True).contiguous()
        for k, v in tensors.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(
        path,
        save(tensors, dict(content=text, checksum=_checksum(text, tensors))))


def read_snapshot(path: Path) -> Dict[str, Any]:
    """Read what :func:`write_snapshot` wrote; runs no code of the file.

    Raises:
        ValueError: If it is broken, changed or of another version; names the
            file.
    """
    try:
        with safe_open(str(path), framework='pt') as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (OSError, SafetensorError) as error:
        raise ValueError(_broken(path, error)) from error
    text = metadata.get('content', '')
    if metadata.get('checksum') != _checksum(text, tensors):
        raise ValueError(_broken(path, 'its checksum differs'))
    content = json.loads(text)
    if content['schema'] != _SCHEMA:
        raise ValueError(_broken(path, f'schema {content["schema"]}'))
    return unpack(content['state'], tensors)


def _checksum(text: str, tensors: Dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for key in sorted(tensors):
        digest.update(tensors[key].numpy().tobytes())
    return digest.hexdigest()


def _broken(path: Path, why: object) -> str:
    return (f'{path} cannot be resumed from ({why}): remove it, and its task '
            'is trained from its beginning.')
