# SPDX-License-Identifier: Apache-2.0
"""What two runs of one stream must have in common."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def results_of(work_dir: Path) -> dict[str, Any]:
    """``results.json`` without the times."""
    document = json.loads((work_dir / 'results.json').read_text())
    del document['cost']['train_seconds']
    return document


def library_files(work_dir: Path) -> dict[str, bytes]:
    """Content of every file of the library."""
    library = work_dir / 'library'
    return {
        str(path.relative_to(library)): path.read_bytes()
        for path in sorted(library.rglob('*')) if path.is_file()
    }


def library_tensors(work_dir: Path) -> dict[str, bytes]:
    """Content of every file of tensors in the library."""
    return {
        name: content
        for name, content in library_files(work_dir).items()
        if name.endswith('.safetensors')
    }


def left_behind(work_dir: Path) -> dict[str, Any]:
    """All that a run leaves, apart from times, logs and checkpoints.

    JSON as text, so that the order of keys counts.
    """
    found: dict[str, Any] = dict(library_files(work_dir))
    found['results.json'] = json.dumps(results_of(work_dir), indent=1)
    for name in ('oracle_digests.json', 'cross_expert_miou.json'):
        path = work_dir / name
        found[name] = path.read_text() if path.exists() else None
    for path in (work_dir / 'routing_log').iterdir():
        found[f'routing_log/{path.name}'] = path.read_bytes()
    return found


def unfinished(work_dir: Path) -> list[str]:
    """Files that only a run in progress has; locks are kept."""
    patterns = ('tasks/*/snapshot*', 'unfinished_row', '**/.*')
    found = {
        str(path.relative_to(work_dir))
        for pattern in patterns
        for path in work_dir.glob(pattern) if path.name != '.lock'
    }
    return sorted(found)


def differences(one: Path, other: Path) -> list[str]:
    """Names of what two work dirs differ in, and of unfinished files."""
    mine, theirs = left_behind(one), left_behind(other)
    return [
        name for name in sorted({*mine, *theirs})
        if mine.get(name) != theirs.get(name)
    ] + unfinished(one)
