# SPDX-License-Identifier: Apache-2.0
"""Runs of a stream, found in the folders where they were left."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from mmseg_mile.files import PathLike, read_json
from .results import StreamResults

RESULTS, SETTINGS = 'results.json', 'settings.json'
# Of tasks that are learned at the same time, each in a work dir of its own.
_PARTS = 'workers'


class FinishedRun(NamedTuple):
    """A run that has scored every task.

    Args:
        name (str): Its folder, below what all folders have in common.
        results (StreamResults): What it measured.
        settings (dict, optional): What its results depend on, by dotted
            name; None if they were not kept.
    """
    name: str
    results: StreamResults
    settings: Optional[Dict[str, Any]]


class LeftOut(NamedTuple):
    """A run that is in no table, and why."""
    run: str
    reason: str


def read_runs(
        roots: Sequence[PathLike]) -> Tuple[List[FinishedRun], List[LeftOut]]:
    """Every run in or below some folders, by name.

    Returns:
        tuple[list, list]: Finished runs, and those that are not finished or
        cannot be read.

    Raises:
        ValueError: If a folder does not exist.
    """
    missing = [os.fspath(root) for root in roots if not Path(root).is_dir()]
    if missing or not roots:
        raise ValueError(f'there is no folder {missing}: give the work dirs '
                         'of runs, or folders that hold some')
    paths = [Path(root).resolve() for root in roots]
    folders = sorted({f for path in paths for f in _work_dirs(path)})
    base = Path(os.path.commonpath(paths))
    if base in folders:
        base = base.parent
    runs, left_out = [], []
    for folder in folders:
        name = folder.relative_to(base).as_posix()
        try:
            runs.append(_read(folder, name))
        except (ValueError, OSError) as error:
            left_out.append(
                LeftOut(name,
                        str(error).replace(str(folder), name)))
    return runs, left_out


def flatten(value: Any, name: str = '') -> Dict[str, Any]:
    """Settings by dotted name.

    Items of a list that have names, such as tasks, go by them, so that
    their order is not taken for their content.
    """
    pairs: List[Tuple[Any, Any]] = []
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
        names = [v.get('name') if isinstance(v, dict) else None for v in value]
        known = None not in names and len(set(names)) == len(names)
        pairs = list(zip(names if known else range(len(value)), value))
    if not pairs:
        return {name: value}
    found: Dict[str, Any] = {}
    for key, item in pairs:
        found.update(flatten(item, f'{name}.{key}' if name else str(key)))
    return found


def _work_dirs(root: Path) -> List[Path]:
    found = []
    for folder, subfolders, files in os.walk(root):
        if RESULTS in files or SETTINGS in files:
            found.append(Path(folder))
            subfolders.clear()
        elif _PARTS in subfolders:
            subfolders.remove(_PARTS)
    return found


def _read(folder: Path, name: str) -> FinishedRun:
    if not (folder / RESULTS).exists():
        raise ValueError('no task is finished yet')
    results = StreamResults.load(folder / RESULTS)
    done, size = results.num_finished_rows, len(results.tasks)
    if done < size:
        raise ValueError(f'{results.method}, seed {results.seed}, has '
                         f'finished {done} of {size} tasks')
    path = folder / SETTINGS
    settings = flatten(read_json(path)) if path.exists() else None
    return FinishedRun(name, results, settings)
