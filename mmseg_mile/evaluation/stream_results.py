# SPDX-License-Identifier: Apache-2.0
"""What one run of a stream measured: ``results.json`` in memory."""
from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Sequence

import numpy as np
from numpy.typing import ArrayLike

from . import results_schema as schema
from .atomic_json import PathLike, read_json, write_json
from .continual_scores import all_scores
from .net_score import net_score
from .results_schema import (GATE_KEYS, KEYS, KINDS, PROVENANCE_KEYS,
                             SCHEMA_VERSION, SCORE_NAMES, SETTING_KEYS)
from .stream_cost import StreamCost

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
        tasks = schema.check_tasks(tasks)
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
        value = schema.check_range(value, 0, 100,
                                   f'miou.{kind}[{after}][{task}]')
        # as in the file, so that scores are the same after a resume
        self.miou[kind][after, task] = round(value, schema.DECIMALS)

    def set_gate(self, accuracy: float, confusion: ArrayLike) -> None:
        """Set the gate's accuracy and its counts of images.

        Args:
            accuracy (float): Share of images routed right, 0 to 1.
            confusion (ArrayLike): (K, K) counts of the first K tasks.
        """
        counts = schema.check_counts(confusion, len(self.tasks))
        self.gate_accuracy = schema.check_range(accuracy, 0, 1,
                                                'gate.accuracy')
        self.gate_confusion = _grow(counts, len(self.tasks), len(self.tasks))

    def set_class_iou(self, kind: str, task_name: str,
                      class_iou: Mapping[str, float]) -> None:
        """Set the IoU per class of one task, per cent."""
        if kind not in KINDS or task_name not in self.tasks:
            raise ValueError(
                f'kind must be one of {KINDS} and the task one of '
                f'{self.tasks}, got {kind!r} and {task_name!r}')
        self.class_iou[kind][task_name] = {
            name:
            schema.check_range(iou, 0, 100,
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
        self.prototype_distances = _grow(
            matrix.round(schema.DECIMALS), size, size)

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
        tasks = schema.check_tasks(tasks)
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
            miou=schema.write_numbers(self.miou),
            class_iou=schema.write_numbers(self.class_iou),
            gate=dict(
                accuracy=schema.write_numbers(self.gate_accuracy),
                confusion=schema.write_counts(self.gate_confusion),
                prototype_distances=schema.write_numbers(
                    self.prototype_distances)),
            scores=schema.write_numbers(self.scores),
            cost=self.cost.to_document(),
            provenance=self.provenance)

    @classmethod
    def from_document(cls, document: Any) -> 'StreamResults':
        """Results of the content of ``results.json``, checked."""
        schema.check_version(document)
        schema.check_keys(document, KEYS, 'the file')
        for name, kind in (('stream', str), ('method', str), ('seed', int)):
            schema.check_type(document[name], kind, name)
        results = cls.new(document['stream'], document['method'],
                          document['seed'], document['tasks'])
        results._read_measured(document)
        results.cost = StreamCost.from_document(document['cost'],
                                                results.tasks)
        results.setting = schema.check_setting(document['setting'])
        schema.check_keys(document['provenance'], PROVENANCE_KEYS,
                          'provenance')
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
            schema.check_keys(document[name], KINDS, name)
        for kind in KINDS:
            field_name = f'miou.{kind}'
            matrix = schema.read_matrix(document['miou'][kind], size,
                                        field_name)
            for (after, task), value in np.ndenumerate(matrix):
                self.set_miou(kind, after, task, value)
            self.class_iou[kind] = schema.read_class_iou(
                document['class_iou'][kind], self.tasks, f'class_iou.{kind}')
        schema.check_keys(document['gate'], GATE_KEYS, 'gate')
        self.set_gate(
            schema.read_number(document['gate']['accuracy'], 'gate.accuracy'),
            schema.read_matrix(document['gate']['confusion'], size,
                               'gate.confusion'))
        self.set_prototype_distances(
            schema.read_matrix(document['gate']['prototype_distances'], size,
                               'gate.prototype_distances'))
        self.scores = schema.read_scores(document['scores'], 'scores')


def _unset(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan)


def _grow(values: np.ndarray, *shape: int) -> np.ndarray:
    grown = _unset(*shape)
    grown[tuple(slice(length) for length in values.shape)] = values
    return grown
