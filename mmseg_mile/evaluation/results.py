# SPDX-License-Identifier: Apache-2.0
"""Shape of ``results.json``, schema 2, and the checks of a file's content.

Every check raises a ``ValueError`` that names the field; the caller adds
the file.
"""
from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence

import numpy as np
from numpy.typing import ArrayLike

from mmseg_mile.files import PathLike, read_json, write_json
from .continual_scores import all_scores, net_score

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


@dataclass(eq=False)
class StreamCost:
    """Sizes and times of one run of T tasks; NaN stands for not known.

    Args:
        train_seconds (np.ndarray): (T,) training time of each task.
        kept_params (np.ndarray): (T,) values that have to be kept, after
            each task, to predict and to go on learning: weights, norm
            statistics, prototypes.
        kept_bytes (np.ndarray): (T,) bytes of the files that hold them, and
            of kept images.
        base_params (int, optional): Parameters of the backbone.
        experts (list[dict]): Size of each expert, ``EXPERT_COST_KEYS``.
        macs (int, optional): Multiply-adds of one image's prediction.
    """
    train_seconds: np.ndarray
    kept_params: np.ndarray
    kept_bytes: np.ndarray
    base_params: Optional[int] = None
    experts: List[Dict[str, Any]] = field(default_factory=list)
    macs: Optional[int] = None

    @classmethod
    def new(cls, num_tasks: int) -> 'StreamCost':
        """Nothing is known yet."""
        seconds, params, num_bytes = np.full((3, num_tasks), np.nan)
        return cls(seconds, params, num_bytes)

    @property
    def is_learned(self) -> np.ndarray:
        """np.ndarray: (T,) bool, the tasks that were trained."""
        return ~np.isnan(self.train_seconds)

    def set_task(self, index: int, seconds: float, params: float,
                 num_bytes: float) -> None:
        """Set what one task took, and what is kept after it."""
        where = f'[{index}]'
        values = (('train_seconds', seconds), ('kept_params', params),
                  ('kept_bytes', num_bytes))
        for name, value in values:
            checked = check_range(value, 0, math.inf, f'cost.{name}{where}')
            getattr(self, name)[index] = checked

    def set_experts(self, experts: Sequence[Dict[str, Any]],
                    tasks: Sequence[str]) -> None:
        """Set the sizes of the experts; empty for a method without any.

        Args:
            experts (Sequence[dict]): ``EXPERT_COST_KEYS`` per expert.
            tasks (Sequence[str]): Names that experts may have.
        """
        for index, entry in enumerate(experts):
            check_cost(entry, tasks, f'cost.experts[{index}]')
        self.experts = [{
            key: entry[key]
            for key in EXPERT_COST_KEYS
        } for entry in experts]

    def extend(self, num_tasks: int) -> None:
        """Make room for tasks at the end of the stream.

        The work of a prediction is that of the longest stream, so that it
        becomes unknown.
        """
        if num_tasks > len(self.train_seconds):
            self.macs = None
        for name in ('train_seconds', 'kept_params', 'kept_bytes'):
            old = getattr(self, name)
            setattr(
                self, name,
                np.concatenate([old,
                                np.full(num_tasks - len(old), np.nan)]))

    def to_document(self) -> Dict[str, Any]:
        """The ``cost`` of ``results.json``."""
        return dict(
            base_params=self.base_params,
            experts=write_numbers(self.experts),
            train_seconds=write_numbers(self.train_seconds),
            kept_params=write_counts([self.kept_params])[0],
            kept_bytes=write_counts([self.kept_bytes])[0],
            macs=self.macs)

    @classmethod
    def from_document(cls, document: Any,
                      tasks: Sequence[str]) -> 'StreamCost':
        """The content of the field, checked.

        Raises:
            ValueError: If something is wrong; names the field.
        """
        check_keys(document, COST_KEYS, 'cost')
        check_type(document['experts'], list, 'cost.experts')
        for name in ('base_params', 'macs'):
            if document[name] is not None:
                check_type(document[name], int, f'cost.{name}')
        cost = cls.new(len(tasks))
        cost.base_params, cost.macs = document['base_params'], document['macs']
        cost.set_experts(document['experts'], tasks)
        columns: List[ArrayLike] = [
            read_vector(document[name], len(tasks), f'cost.{name}')
            for name in ('train_seconds', 'kept_params', 'kept_bytes')
        ]
        for index, values in enumerate(zip(*columns)):
            cost.set_task(index, *values)
        return cost


ClassIoU = Dict[str, Dict[str, float]]


@dataclass(eq=False)
class StreamResults:
    """Score matrices, gate, scores, cost and provenance of one run.

    Made with :meth:`new` or :meth:`load`. NaN stands for not evaluated and
    is ``null`` in the file. T tasks; row i of a score matrix = after
    learning task i, column j = evaluated on task j, in per cent.

    Args:
        stream (str): Name of the stream.
        method (str): Name of the method.
        seed (int): Random seed of the run.
        tasks (list[str]): Names of the tasks, in order.
        miou (dict[str, np.ndarray]): (T, T) under ``'routed'`` and
            ``'oracle'``.
        class_iou (dict): IoU per kind, task and class after the last task.
        gate_accuracy (float): Share of images routed right, 0 to 1.
        gate_confusion (np.ndarray): (T, T) image counts, rows true task,
            columns chosen expert.
        prototype_distances (np.ndarray): (T, T) distance of the prototypes
            of each task (row) to each expert (column), in the gate's unit.
        cost (StreamCost): Sizes and times.
        setting (dict): What the method was given: ``task_label_at_test``
            (bool) and ``old_images`` ('none', 'buffer' or 'all').
        scores (dict[str, float]): One value per name of ``SCORE_NAMES``.
        provenance (dict): ``PROVENANCE_KEYS``.
    """
    stream: str
    method: str
    seed: int
    tasks: List[str]
    miou: Dict[str, np.ndarray]
    gate_confusion: np.ndarray
    prototype_distances: np.ndarray
    cost: StreamCost
    setting: Dict[str, Any] = field(
        default_factory=lambda: dict(zip(SETTING_KEYS, (False, 'none'))))
    class_iou: Dict[str, ClassIoU] = field(
        default_factory=lambda: {kind: {}
                                 for kind in KINDS})
    gate_accuracy: float = math.nan
    scores: Dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(SCORE_NAMES, math.nan))
    provenance: Dict[str, Any] = field(
        default_factory=lambda: dict.fromkeys(PROVENANCE_KEYS))

    @classmethod
    def new(cls, stream: str, method: str, seed: int,
            tasks: Sequence[str]) -> 'StreamResults':
        """Results of a run that has not evaluated anything yet."""
        tasks = check_tasks(tasks)
        size = len(tasks)
        return cls(
            stream,
            method,
            seed,
            tasks,
            miou={kind: _unset(size, size)
                  for kind in KINDS},
            gate_confusion=_unset(size, size),
            prototype_distances=_unset(size, size),
            cost=StreamCost.new(size))

    @property
    def num_finished_rows(self) -> int:
        """int: Leading rows with a routed score for every learned task."""
        # Row i is finished when columns 0 to i are set.
        missing = np.isnan(self.miou['routed']) & np.tri(
            len(self.tasks), dtype=bool)
        return int(np.logical_and.accumulate(~missing.any(axis=1)).sum())

    @property
    def has_gate(self) -> bool:
        """bool: Whether routing was measured."""
        return not np.isnan(self.gate_confusion).all()

    def set_miou(self, kind: str, after: int, task: int, value: float) -> None:
        """Set one cell, per cent; NaN marks it as not evaluated."""
        if kind not in KINDS:
            raise ValueError(f'kind must be one of {KINDS}, got {kind!r}')
        size = len(self.tasks)
        if not (0 <= after < size and 0 <= task < size):
            raise ValueError(f'after and task must lie in 0 to {size - 1}, '
                             f'got {after} and {task}')
        value = check_range(value, 0, 100, f'miou.{kind}[{after}][{task}]')
        # as in the file, so that scores are the same after a resume
        self.miou[kind][after, task] = round(value, DECIMALS)

    def set_gate(self, accuracy: float, confusion: ArrayLike) -> None:
        """Set the gate's accuracy and its counts of images.

        Args:
            accuracy (float): Share of images routed right, 0 to 1.
            confusion (ArrayLike): (K, K) counts of the first K tasks.
        """
        counts = check_counts(confusion, len(self.tasks))
        self.gate_accuracy = check_range(accuracy, 0, 1, 'gate.accuracy')
        self.gate_confusion = _grow(counts, len(self.tasks), len(self.tasks))

    def set_class_iou(self, kind: str, task_name: str,
                      class_iou: Mapping[str, float]) -> None:
        """Set the IoU per class of one task, per cent."""
        if kind not in KINDS or task_name not in self.tasks:
            raise ValueError(
                f'kind must be one of {KINDS} and the task one of '
                f'{self.tasks}, got {kind!r} and {task_name!r}')
        self.class_iou[kind][task_name] = {
            name: check_range(iou, 0, 100,
                              f'class_iou.{kind}.{task_name}.{name}')
            for name, iou in class_iou.items()
        }

    def set_prototype_distances(self, distances: ArrayLike) -> None:
        """Set the (K, K) distances between the first K tasks' prototypes."""
        matrix = np.array(distances, dtype=float)
        size = len(self.tasks)
        if matrix.shape != (len(matrix), ) * 2 or len(matrix) > size:
            raise ValueError(
                'gate.prototype_distances must be square with at most one '
                f'row per task ({size}), got shape {matrix.shape}')
        self.prototype_distances = _grow(matrix.round(DECIMALS), size, size)

    def set_provenance(self, commit: Optional[str], versions: Mapping[str,
                                                                      str],
                       config: Any, device: str) -> None:
        """Set what made the numbers; all of it must be JSON-able."""
        self.provenance = dict(
            commit=commit,
            versions=dict(versions),
            config=config,
            device=device)

    def extend(self, tasks: Sequence[str]) -> None:
        """Grow to a longer stream that begins with the same tasks.

        What was measured is kept; new cells are not evaluated yet.

        Raises:
            ValueError: If ``tasks`` does not begin with the present tasks.
        """
        tasks = check_tasks(tasks)
        if tasks[:len(self.tasks)] != self.tasks:
            raise ValueError(
                f'the results hold the tasks {self.tasks}, the stream has '
                f'{tasks}: a stream can only be continued by tasks at its '
                'end. Keep the old order, or choose another work_dir.')
        size = len(tasks)
        self.tasks = tasks
        self.miou = {
            kind: _grow(matrix, size, size)
            for kind, matrix in self.miou.items()
        }
        self.gate_confusion = _grow(self.gate_confusion, size, size)
        self.prototype_distances = _grow(self.prototype_distances, size, size)
        self.cost.extend(size)

    def compute_scores(self, forced: Optional[ArrayLike] = None) -> None:
        """Fill ``scores`` from the matrices up to the last finished row.

        Args:
            forced (ArrayLike, optional): mIoU with a forced expert, rows
                tasks, columns experts, of the K finished or of all tasks.
                ``mismatch_drop`` is NaN without it. Defaults to None.
        """
        self.scores = dict.fromkeys(SCORE_NAMES, math.nan)
        size = self.num_finished_rows
        if not size:
            return
        routed, oracle = (self.miou[k][:size, :size] for k in KINDS)
        if forced is not None:
            forced = np.array(forced, dtype=float)
            if forced.shape == (len(self.tasks), ) * 2:
                forced = forced[:size, :size]
        self.scores.update(all_scores(routed, oracle, forced))
        self.scores['net_score'] = net_score(self.scores['average_miou'],
                                             self.cost.kept_params[size - 1],
                                             self.cost.macs)

    def to_document(self) -> Dict[str, Any]:
        """The content of ``results.json``."""
        return dict(
            schema=SCHEMA_VERSION,
            stream=self.stream,
            method=self.method,
            setting=dict(self.setting),
            seed=self.seed,
            tasks=list(self.tasks),
            miou=write_numbers(self.miou),
            class_iou=write_numbers(self.class_iou),
            gate=dict(
                accuracy=write_numbers(self.gate_accuracy),
                confusion=write_counts(self.gate_confusion),
                prototype_distances=write_numbers(self.prototype_distances)),
            scores=write_numbers(self.scores),
            cost=self.cost.to_document(),
            provenance=self.provenance)

    @classmethod
    def from_document(cls, document: Any) -> 'StreamResults':
        """Results of the content of ``results.json``, checked."""
        check_version(document)
        check_keys(document, KEYS, 'the file')
        for name, kind in (('stream', str), ('method', str), ('seed', int)):
            check_type(document[name], kind, name)
        results = cls.new(document['stream'], document['method'],
                          document['seed'], document['tasks'])
        results._read_measured(document)
        results.cost = StreamCost.from_document(document['cost'],
                                                results.tasks)
        results.setting = check_setting(document['setting'])
        check_keys(document['provenance'], PROVENANCE_KEYS, 'provenance')
        results.provenance = dict(document['provenance'])
        return results

    def save(self, path: PathLike) -> None:
        """Write ``results.json``; a crash leaves the old file whole."""
        write_json(path, self.to_document())

    @classmethod
    def load(cls, path: PathLike) -> 'StreamResults':
        """Read a ``results.json``.

        Raises:
            ValueError: If the file is broken; names file and field.
        """
        document = read_json(path)
        try:
            return cls.from_document(document)
        except ValueError as error:
            raise ValueError(f'{os.fspath(path)}: {error}') from error

    def _read_measured(self, document: Dict[str, Any]) -> None:
        size = len(self.tasks)
        for name in ('miou', 'class_iou'):
            check_keys(document[name], KINDS, name)
        for kind in KINDS:
            field_name = f'miou.{kind}'
            matrix = read_matrix(document['miou'][kind], size, field_name)
            for (after, task), value in np.ndenumerate(matrix):
                self.set_miou(kind, after, task, value)
            self.class_iou[kind] = read_class_iou(document['class_iou'][kind],
                                                  self.tasks,
                                                  f'class_iou.{kind}')
        check_keys(document['gate'], GATE_KEYS, 'gate')
        self.set_gate(
            read_number(document['gate']['accuracy'], 'gate.accuracy'),
            read_matrix(document['gate']['confusion'], size, 'gate.confusion'))
        self.set_prototype_distances(
            read_matrix(document['gate']['prototype_distances'], size,
                        'gate.prototype_distances'))
        self.scores = read_scores(document['scores'], 'scores')


def _unset(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan)


def _grow(values: np.ndarray, *shape: int) -> np.ndarray:
    grown = _unset(*shape)
    grown[tuple(slice(length) for length in values.shape)] = values
    return grown
