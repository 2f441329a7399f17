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
    save_file({k: v.detach().cpu().clone().contiguous()
               for k, v in tensors.items()}, str(path))


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


def write_json(path: Path, content: Any) -> None:
    """Write JSON that appears whole or not at all."""
    partial = path.with_name(f'.{path.name}.partial')
    with open(partial, 'w', encoding='utf-8') as file:
        json.dump(content, file, indent=1, ensure_ascii=False, sort_keys=True)
        file.write('\n')
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        ValueError: If it is missing or broken; names the file.
    """
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f'{path} cannot be read ({error}): restore it from '
                         'a copy, or train its task again.') from error


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder that becomes ``target`` when the block ends well.

    An older ``target`` is replaced; a block that fails, or is killed, leaves
    it as it was.
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
            os.replace(partial, target)
            shutil.rmtree(old)
        else:
            os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
