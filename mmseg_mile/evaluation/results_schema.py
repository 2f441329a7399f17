# SPDX-License-Identifier: Apache-2.0
"""Shape of ``results.json``, schema 2, and the checks of a file's content.

Every check raises a ``ValueError`` that names the field; the caller adds
the file.
"""
from __future__ import annotations

import math
import sys
from typing import Any, Dict, Iterable, List, Optional, Sequence

import numpy as np
from numpy.typing import ArrayLike

SCHEMA_VERSION = 2
KINDS = ('routed', 'oracle')
SCORE_NAMES = ('average_miou', 'backward_transfer', 'forward_transfer',
               'forgetting', 'stability', 'plasticity', 'oracle_gap',
               'mismatch_drop', 'harmonic_mean_miou', 'net_score')
EXPERT_COST_KEYS = ('task', 'lora_params', 'head_params', 'norm_params',
                    'prototype_values', 'bytes')
COST_KEYS = ('base_params', 'experts', 'train_seconds', 'kept_params',
             'kept_bytes', 'macs')
GATE_KEYS = ('accuracy', 'confusion', 'prototype_distances')
SETTING_KEYS = ('task_label_at_test', 'old_images')
OLD_IMAGES = ('none', 'buffer', 'all')
PROVENANCE_KEYS = ('commit', 'versions', 'config', 'device')
KEYS = ('schema', 'stream', 'method', 'setting', 'seed', 'tasks', 'miou',
        'class_iou', 'gate', 'scores', 'cost', 'provenance')
DECIMALS = 4


def check_keys(value: Any, keys: Sequence[str], field: str) -> None:
    """Require an object with exactly ``keys``."""
    if not isinstance(value, dict):
        raise ValueError(f'{field} must be an object with the keys '
                         f'{list(keys)}, got {type(value).__name__}')
    missing = [key for key in keys if key not in value]
    extra = [key for key in value if key not in keys]
    if missing or extra:
        raise ValueError(f'{field} must have the keys {list(keys)}, missing '
                         f'are {missing}, unknown are {extra}')


def check_type(value: Any, kind: type, field: str) -> None:
    """Require a ``kind``; a bool is no integer."""
    if not isinstance(value, kind) or (kind is int
                                       and isinstance(value, bool)):
        raise ValueError(f'{field} must be of type {kind.__name__}, '
                         f'got {value!r}')


def check_tasks(tasks: Any, field: str = 'tasks') -> List[str]:
    """Require one or more different task names; returns them as a list."""
    names = list(tasks) if isinstance(tasks, (list, tuple)) else []
    if not names or len(set(map(str, names))) < len(names) or not all(
            isinstance(name, str) for name in names):
        raise ValueError(f'{field} must be a list of one or more different '
                         f'names, got {tasks!r}')
    return names


def check_version(document: Any) -> None:
    """Require an object of this schema's version."""
    if not isinstance(document, dict) or 'schema' not in document:
        raise ValueError("field 'schema' is missing: this is no results "
                         'file of a stream')
    version = document['schema']
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise ValueError(
            f"field 'schema' must be {SCHEMA_VERSION}, got {version!r}: the "
            'file was written by another version of this package, which '
            'is the one to go on from it. Choose another --work-dir to '
            'train and evaluate with this one.')


def check_range(value: float, low: float, high: float, field: str) -> float:
    """Require ``low <= value <= high``; NaN, not evaluated, may pass."""
    value = float(value)
    if not (math.isnan(value) or low <= value <= high):
        raise ValueError(f'{field} must lie in {low} to {high}, or be NaN '
                         f'where it was not evaluated, got {value}')
    return value


def check_counts(confusion: ArrayLike, num_tasks: int) -> np.ndarray:
    """Require square counts of images for up to ``num_tasks`` tasks."""
    counts = np.array(confusion, dtype=float)
    if counts.shape != (len(counts), ) * 2 or not (0 < len(counts) <=
                                                   num_tasks):
        raise ValueError('gate.confusion must be square with at most one row '
                         f'per task ({num_tasks}), got shape {counts.shape}')
    known = counts[~np.isnan(counts)]
    if (known
            < 0).any() or (known
                           != np.round(known)).any() or np.isinf(known).any():
        raise ValueError('gate.confusion must hold numbers of images, '
                         f'got {counts.tolist()}')
    return counts


def check_cost(entry: Any, tasks: Sequence[str], field: str) -> None:
    """Require one expert's cost: known task, counts that are not negative."""
    check_keys(entry, EXPERT_COST_KEYS, field)
    if entry['task'] not in tasks:
        raise ValueError(f'{field}.task must be one of {list(tasks)}, '
                         f'got {entry["task"]!r}')
    for key in EXPERT_COST_KEYS[1:]:
        check_type(entry[key], int, f'{field}.{key}')
        check_range(entry[key], 0, math.inf, f'{field}.{key}')


def check_setting(setting: Any) -> Dict[str, Any]:
    """Require what a method is given; returns it."""
    check_keys(setting, SETTING_KEYS, 'setting')
    label, images = (setting[key] for key in SETTING_KEYS)
    check_type(label, bool, 'setting.task_label_at_test')
    if images not in OLD_IMAGES:
        raise ValueError(f'setting.old_images must be one of {OLD_IMAGES}, '
                         f'got {images!r}')
    return dict(setting)


def read_number(value: Any, field: str) -> float:
    """Float of a JSON number, NaN of null."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f'{field} must be a number or null, got {value!r}')
    if abs(value) > sys.float_info.max:
        raise ValueError(f'{field} must be finite, got {value!r}')
    return float(value)


def read_vector(value: Any, length: int, field: str) -> np.ndarray:
    """(length,) floats of a list of numbers and nulls."""
    if not isinstance(value, list) or len(value) != length:
        got = f'{len(value)} values' if isinstance(value, list) else value
        raise ValueError(f'{field} must be a list of {length} values, one '
                         f'per task, got {got}')
    return np.array(
        [read_number(v, f'{field}[{i}]') for i, v in enumerate(value)])


def read_matrix(value: Any, length: int, field: str) -> np.ndarray:
    """(length, length) floats of a list of lists."""
    if not isinstance(value, list) or len(value) != length:
        got = f'{len(value)} rows' if isinstance(value, list) else value
        raise ValueError(f'{field} must be a list of {length} rows, one per '
                         f'task, got {got}')
    return np.stack([
        read_vector(row, length, f'{field}[{i}]')
        for i, row in enumerate(value)
    ])


def read_class_iou(value: Any, tasks: Sequence[str],
                   field: str) -> Dict[str, Dict[str, float]]:
    """IoU per task and class; every task must be known."""
    check_type(value, dict, field)
    found = {}
    for task, per_class in value.items():
        if task not in tasks:
            raise ValueError(f'{field} names the task {task!r}, known are '
                             f'{list(tasks)}')
        check_type(per_class, dict, f'{field}.{task}')
        found[task] = {
            name: read_number(iou, f'{field}.{task}.{name}')
            for name, iou in per_class.items()
        }
    return found


def read_scores(value: Any, field: str) -> Dict[str, float]:
    """One number or NaN per name of ``SCORE_NAMES``."""
    check_keys(value, SCORE_NAMES, field)
    return {
        name: read_number(value[name], f'{field}.{name}')
        for name in SCORE_NAMES
    }


def write_numbers(value: Any) -> Any:
    """JSON form: NaN becomes null, floats are cut to four decimals.

    Whole numbers of an integer kind stay whole; arrays become lists.
    """
    if isinstance(value, dict):
        return {key: write_numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [write_numbers(item) for item in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, (float, np.floating)):
        # Adding zero turns -0.0 into 0.0.
        return None if math.isnan(value) else round(float(value),
                                                    DECIMALS) + 0.0
    return value


def write_counts(
        counts: Iterable[Iterable[float]]) -> List[List[Optional[int]]]:
    """JSON form of whole numbers; NaN becomes null."""
    return [[None if math.isnan(count) else int(count) for count in row]
            for row in counts]
