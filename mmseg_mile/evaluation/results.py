# SPDX-License-Identifier: Apache-2.0
"""Results of one run of a stream, and their file ``results.json``.

T tasks. Row i of a score matrix = after learning task i, column j =
evaluated on task j, mIoU in per cent. NaN stands for not evaluated, in the
file ``null``.
"""
from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Sequence

import numpy as np
from numpy.typing import ArrayLike

from mmseg_mile.files import PathLike, read_json, write_json
from .continual_scores import all_scores, net_score

SCHEMA_VERSION = 3
KINDS = ('routed', 'oracle')
DECIMALS = 4

ClassIoU = Dict[str, Dict[str, float]]


@dataclass(eq=False)
class StreamCost:
    """Sizes and times of one run.

    Args:
        train_seconds (np.ndarray): (T,) training time of each task; NaN
            before it is learned.
        kept_params (np.ndarray): (T,) values that have to be kept, after
            each task, to predict and to go on learning: weights, norm
            statistics, prototypes.
        kept_bytes (np.ndarray): (T,) bytes of the files that hold them, and
            of kept images.
        base_params (int, optional): Parameters of the backbone.
        experts (list[dict]): Size of each expert: ``task``, ``bytes``, and
            the number of values of each of its parts, such as
            ``lora_params``; empty for a method without experts.
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
        """Costs of a run that has not learned anything yet."""
        return cls(*np.full((3, num_tasks), np.nan))

    @property
    def is_learned(self) -> np.ndarray:
        """np.ndarray: (T,) bool, the tasks that were trained."""
        return ~np.isnan(self.train_seconds)

    def set_task(self, index: int, seconds: float, params: float,
                 num_bytes: float) -> None:
        """Set what one task took, and what is kept after it."""
        self.train_seconds[index] = seconds
        self.kept_params[index] = params
        self.kept_bytes[index] = num_bytes

    def set_experts(self, experts: Sequence[Dict[str, Any]],
                    tasks: Sequence[str]) -> None:
        """Set the sizes of the experts, each of which belongs to a task."""
        for entry in experts:
            if entry.get('task') not in tasks or 'bytes' not in entry:
                raise ValueError('cost.experts must have bytes and a task of '
                                 f'{list(tasks)}, got {entry}')
        self.experts = [dict(entry) for entry in experts]

    def extend(self, num_tasks: int) -> None:
        """Make room for tasks at the end of the stream."""
        if num_tasks > len(self.train_seconds):
            # a prediction among more experts is more work
            self.macs = None
        for name in ('train_seconds', 'kept_params', 'kept_bytes'):
            setattr(self, name, _grow(getattr(self, name), num_tasks))

    def to_document(self) -> Dict[str, Any]:
        """As plain JSON values."""
        return dict(
            base_params=self.base_params,
            experts=write_numbers(self.experts),
            train_seconds=write_numbers(self.train_seconds),
            kept_params=_whole(self.kept_params),
            kept_bytes=_whole(self.kept_bytes),
            macs=self.macs)


@dataclass(eq=False)
class StreamResults:
    """Score matrices, gate, scores, cost and provenance of one run.

    Made with :meth:`new` or :meth:`load`.

    Args:
        stream (str): Name of the stream.
        method (str): Name of the method.
        seed (int): Random seed of the run.
        tasks (list[str]): Names of the T tasks, in order.
        miou (dict[str, np.ndarray]): (T, T) under ``'routed'`` and
            ``'oracle'``, the latter with the expert of the true task.
        gate_confusion (np.ndarray): (T, T) image counts, rows true task,
            columns chosen expert.
        prototype_distances (np.ndarray): (T, T) distance of the prototypes
            of each task (row) to each expert (column), in the gate's unit.
        routing_stats (list[dict | None]): T rows of plain JSON values that
            the method tells of its routing, in a form of its own.
        cost (StreamCost): Sizes and times.
        setting (dict): Help that the method gets: ``task_label_at_test``
            (bool) and ``old_images`` ('none', 'buffer' or 'all').
        class_iou (dict): IoU per kind, task and class after the last task.
        gate_accuracy (float): Share of images routed right, 0 to 1.
        scores (dict[str, float]): Filled by :meth:`compute_scores`.
        provenance (dict): Commit, versions, config and device.
        selection_share (float, optional): Of a selection run, the share of
            training images that were held out and scored instead of the
            reported ones. Defaults to None: scored as reported.
    """
    stream: str
    method: str
    seed: int
    tasks: List[str]
    miou: Dict[str, np.ndarray]
    gate_confusion: np.ndarray
    prototype_distances: np.ndarray
    routing_stats: List[Optional[Dict[str, Any]]]
    cost: StreamCost
    setting: Dict[str, Any]
    class_iou: Dict[str, ClassIoU]
    gate_accuracy: float = math.nan
    scores: Dict[str, float] = field(default_factory=dict)
    provenance: Dict[str, Any] = field(default_factory=dict)
    selection_share: Optional[float] = None

    @classmethod
    def new(cls, stream: str, method: str, seed: int,
            tasks: Sequence[str]) -> 'StreamResults':
        """Results of a run that has not evaluated anything yet."""
        size = len(tasks)
        results = cls(
            stream,
            method,
            seed,
            list(tasks),
            miou={kind: _unset(size, size)
                  for kind in KINDS},
            gate_confusion=_unset(size, size),
            prototype_distances=_unset(size, size),
            routing_stats=[None] * size,
            cost=StreamCost.new(size),
            setting=dict(task_label_at_test=False, old_images='none'),
            class_iou={kind: {}
                       for kind in KINDS})
        results.set_provenance(None, {}, None, '')
        results.compute_scores()
        return results

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
        # as in the file, so that scores are the same after a resume
        self.miou[kind][after, task] = round(float(value), DECIMALS)

    def set_class_iou(self, kind: str, task: str,
                      class_iou: Mapping[str, float]) -> None:
        """Set the IoU per class of one task, per cent."""
        self.class_iou[kind][task] = dict(class_iou)

    def set_gate(self, accuracy: float, confusion: ArrayLike) -> None:
        """Set the gate's accuracy and its counts of images.

        Args:
            accuracy (float): Share of images routed right, 0 to 1.
            confusion (ArrayLike): (K, K) counts of the first K tasks.
        """
        self.gate_accuracy = accuracy
        self.gate_confusion = self._padded(confusion)

    def set_prototype_distances(self, distances: ArrayLike) -> None:
        """Set the (K, K) distances between the first K tasks' prototypes."""
        self.prototype_distances = self._padded(distances).round(DECIMALS)

    def set_provenance(self, commit: Optional[str], versions: Mapping[str,
                                                                      str],
                       config: Any, device: str) -> None:
        """Set what made the numbers, as plain JSON values."""
        self.provenance = dict(
            commit=commit,
            versions=dict(versions),
            config=config,
            device=device)

    def extend(self, tasks: Sequence[str]) -> None:
        """Grow to a longer stream that begins with the same tasks.

        Raises:
            ValueError: If ``tasks`` does not begin with the present tasks.
        """
        if list(tasks[:len(self.tasks)]) != self.tasks:
            raise ValueError(
                f'the results hold the tasks {self.tasks}, the stream has '
                f'{list(tasks)}: a stream can only be continued by tasks at '
                'its end. Keep the old order, or choose another --work-dir.')
        self.routing_stats += [None] * (len(tasks) - len(self.tasks))
        self.tasks = list(tasks)
        self.miou = {k: self._padded(m) for k, m in self.miou.items()}
        self.gate_confusion = self._padded(self.gate_confusion)
        self.prototype_distances = self._padded(self.prototype_distances)
        self.cost.extend(len(tasks))

    def compute_scores(self, forced: Optional[ArrayLike] = None) -> None:
        """Fill ``scores`` from the matrices up to the last finished row.

        Args:
            forced (ArrayLike, optional): (T, T) mIoU with a forced expert,
                rows tasks, columns experts. ``mismatch_drop`` is NaN without
                it. Defaults to None.
        """
        # without a row, the one cell is unknown and so is every score
        size = max(self.num_finished_rows, 1)
        routed, oracle = (self.miou[kind][:size, :size] for kind in KINDS)
        if forced is not None:
            forced = np.array(forced, float)[:size, :size]
        self.scores = all_scores(routed, oracle, forced)
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
            selection_share=self.selection_share,
            tasks=list(self.tasks),
            miou=write_numbers(self.miou),
            class_iou=write_numbers(self.class_iou),
            gate=dict(
                accuracy=write_numbers(self.gate_accuracy),
                confusion=[_whole(row) for row in self.gate_confusion],
                prototype_distances=write_numbers(self.prototype_distances)),
            routing_stats=write_numbers(self.routing_stats),
            scores=write_numbers(self.scores),
            cost=self.cost.to_document(),
            provenance=self.provenance)

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
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f'{os.fspath(path)} cannot be read: {error}') from error

    @classmethod
    def from_document(cls, document: Any) -> 'StreamResults':
        """Results of the content of ``results.json``, see :meth:`load`."""
        version = _get(document, 'schema')
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"field 'schema' must be {SCHEMA_VERSION}, got {version!r}: "
                'another version of this package wrote the file, and can go '
                'on from it. Choose another --work-dir for this one.')
        head = ('stream', 'method', 'seed', 'tasks')
        results = cls.new(*(_get(document, name) for name in head))
        size = len(results.tasks)
        for kind in KINDS:
            results.miou[kind] = _read(document, f'miou.{kind}', size, size)
            results.class_iou[kind] = _measured(
                _get(document, f'class_iou.{kind}'))
        results.gate_accuracy = float(_read(document, 'gate.accuracy'))
        results.gate_confusion = _read(document, 'gate.confusion', size, size)
        results.prototype_distances = _read(document,
                                            'gate.prototype_distances', size,
                                            size)
        results.routing_stats = _get(document, 'routing_stats')
        for name in results.scores:
            results.scores[name] = float(_read(document, f'scores.{name}'))
        results.cost = StreamCost(
            _read(document, 'cost.train_seconds', size),
            _read(document, 'cost.kept_params', size),
            _read(document, 'cost.kept_bytes', size),
            base_params=_get(document, 'cost.base_params'),
            macs=_get(document, 'cost.macs'))
        results.cost.set_experts(_get(document, 'cost.experts'), results.tasks)
        results.setting = _get(document, 'setting')
        results.provenance = _get(document, 'provenance')
        # files that were written before there were selection runs lack it
        results.selection_share = document.get('selection_share')
        return results

    def _padded(self, matrix: ArrayLike) -> np.ndarray:
        return _grow(np.array(matrix, float), *(len(self.tasks), ) * 2)


def _get(document: Any, name: str) -> Any:
    """The value of a field, by dotted name."""
    for key in name.split('.'):
        if not isinstance(document, dict) or key not in document:
            raise ValueError(f'field {name!r} is missing: this is no results '
                             'file of a stream')
        document = document[key]
    return document


def _read(document: Any, name: str, *shape: int) -> np.ndarray:
    """Numbers of a field, null as NaN."""
    value = _get(document, name)
    try:
        values = np.array(value, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f'field {name!r} must hold numbers: '
                         f'{error}') from error
    if values.shape != shape:
        raise ValueError(f'field {name!r} must have shape {shape}, one entry '
                         f'per task, got {values.shape}')
    return values


def _measured(value: Any) -> Any:
    """Undo :func:`write_numbers` in nested dicts of numbers."""
    if isinstance(value, dict):
        return {key: _measured(item) for key, item in value.items()}
    return math.nan if value is None else value


def write_numbers(value: Any) -> Any:
    """JSON form: NaN becomes null, floats are cut to four decimals."""
    if isinstance(value, dict):
        return {key: write_numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [write_numbers(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        # Adding zero turns -0.0 into 0.0.
        return None if math.isnan(value) else round(value, DECIMALS) + 0.0
    return value


def _whole(counts: np.ndarray) -> List[Optional[int]]:
    """JSON form of whole numbers; NaN becomes null."""
    return [None if math.isnan(count) else int(count) for count in counts]


def _unset(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan)


def _grow(values: np.ndarray, *shape: int) -> np.ndarray:
    grown = _unset(*shape)
    grown[tuple(slice(length) for length in values.shape)] = values
    return grown
