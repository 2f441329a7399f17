# SPDX-License-Identifier: Apache-2.0
"""Writing and checking the files of a library."""
from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            digest.update(block)
    return digest.hexdigest()


def write_tensors(path: Path, tensors: Dict[str, Tensor]) -> None:
    """Write a safetensors file; scalars and shared storage are no trouble."""
    save_file(
        {
            k: v.detach().cpu().clone().contiguous()
            for k, v in tensors.items()
        }, str(path))


def read_tensors(path: Path) -> Dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        ValueError: If it is missing or broken; names the file.
    """
    try:
        return load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise ValueError(f'{path} cannot be read ({error}): restore it from '
                         'a copy, or train its task again.') from error


def write_json(path: Path, content: Dict[str, Any]) -> None:
    """Write a JSON object, with its checksum, whole or not at all."""
    content = dict(content, checksum=_json_checksum(content))
    partial = path.with_name(f'.{path.name}.partial')
    with open(partial, 'w', encoding='utf-8') as file:
        json.dump(content, file, indent=1, ensure_ascii=False, sort_keys=True)
        file.write('\n')
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_json(path: Path) -> Any:
    """Read what :func:`write_json` wrote, without the checksum.

    Raises:
        ValueError: If it is missing, broken or changed; names the file.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f'{path} cannot be read ({error}): restore it from '
                         'a copy, or train its task again.') from error
    if isinstance(content, dict) and 'checksum' in content:
        if content.pop('checksum') != _json_checksum(content):
            raise ValueError(f'{path} was changed since it was written (its '
                             'checksum differs): restore it from a copy, or '
                             'train its task again.')
    return content


def _json_checksum(content: Dict[str, Any]) -> str:
    # once through JSON, which turns tuples to lists and keys to strings
    plain = json.loads(json.dumps(content))
    text = json.dumps(plain, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder that becomes ``target`` when the block ends well.

    An older ``target`` is replaced in the end, by two renames; a block that
    fails, or is killed, leaves it as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(
        tempfile.mkdtemp(prefix='.partial-', dir=str(target.parent)))
    try:
        yield partial
        partial.chmod(0o755)
        if target.exists():
            old = partial.with_name(partial.name + '-old')
            os.replace(target, old)
            try:
                os.replace(partial, target)
            except BaseException:
                os.replace(old, target)
                raise
            shutil.rmtree(old)
        else:
            os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
