# SPDX-License-Identifier: Apache-2.0
"""Every task predicted without the expert that learned it.

The protocol of SemLA (Qorbani et al., CVPR 2025, arXiv 2503.21780), and with
all the experts of a task's family gone as well: there, the fog of ACDC is
left out while rain, snow and night of the same drives stay.
"""
from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from statistics import harmonic_mean
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import numpy as np

from mmseg_mile.files import PathLike, read_json, write_json
from .continual_scores import Spread, spread
from .left_out_methods import ORACLE, SCOPES, removals
from .left_out_score import LeftOutScore, check_keys, check_tasks, check_type
from .results import write_numbers

LEFT_OUT_SCHEMA = 1
KEYS = ('schema', 'stream', 'method', 'tasks', 'families', 'gate', 'runs')
RUN_KEYS = ('seed', 'leaks', 'provenance', 'scores')
LEAK_KEYS = ('removed', 'kind', 'through', 'certain')
KINDS = ('base', 'experts')


@dataclass(frozen=True)
class Leak:
    """A way in which what was removed is still there.

    Args:
        removed (tuple[str]): Tasks whose experts are not there.
        kind (str): 'base': it was trained on one of them. 'experts':
            experts that are there started from one that is not.
        through (tuple[str]): The removed task whose images the base has
            seen, or the experts that are there.
        certain (bool): False where an expert may have started from one that
            was removed, but nothing says which one it was.
    """
    removed: Tuple[str, ...]
    kind: str
    through: Tuple[str, ...]
    certain: bool = True

    @classmethod
    def from_document(cls, document: Any) -> 'Leak':
        """What ``asdict`` gave, through JSON."""
        check_keys(document, LEAK_KEYS, 'a leak')
        check_type(document['certain'], bool, 'certain')
        if document['kind'] not in KINDS:
            raise ValueError(f'kind of a leak must be one of {KINDS}, got '
                             f'{document["kind"]!r}')
        return cls(
            tuple(document['removed']), document['kind'],
            tuple(document['through']), document['certain'])


@dataclass(frozen=True)
class LeftOutRun:
    """All scores of one run.

    Args:
        seed (int): Of the run.
        leaks (tuple[Leak]): What was removed and is still there.
        scores (tuple[LeftOutScore]): Of each target, removal and method.
        provenance (dict): Commit, versions and device.
    """
    seed: int
    leaks: Tuple[Leak, ...]
    scores: Tuple[LeftOutScore, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_document(self) -> Dict[str, Any]:
        """As plain JSON values."""
        return dict(
            seed=self.seed,
            leaks=[write_numbers(asdict(leak)) for leak in self.leaks],
            provenance=dict(self.provenance),
            scores=[score.to_document() for score in self.scores])

    @classmethod
    def from_document(cls, document: Any) -> 'LeftOutRun':
        """What :meth:`to_document` gave.

        Raises:
            ValueError: If it is no such thing; names the field.
        """
        check_keys(document, RUN_KEYS, 'a run')
        check_type(document['seed'], int, 'seed')
        return cls(document['seed'],
                   tuple(map(Leak.from_document, document['leaks'])),
                   tuple(map(LeftOutScore.from_document, document['scores'])),
                   document['provenance'])


@dataclass(frozen=True)
class LeaveOneOut:
    """The protocol over the seeds of one method on one stream.

    Args:
        stream (str): Its name.
        method (str): How base and experts were trained.
        tasks (tuple[str]): Targets, in the order they were learned in.
        families (dict[str, tuple[str]]): See ``structures.families``.
        gate (dict): Options of the gate that weighs experts.
        runs (tuple[LeftOutRun]): One per seed.
    """
    stream: str
    method: str
    tasks: Tuple[str, ...]
    families: Mapping[str, Tuple[str, ...]]
    gate: Mapping[str, Any]
    runs: Tuple[LeftOutRun, ...]

    @property
    def has_families(self) -> bool:
        """bool: Whether a family has more than one task."""
        return any(len(names) > 1 for names in self.families.values())

    @property
    def methods(self) -> List[str]:
        """list[str]: All that were evaluated, in order."""
        return list(
            dict.fromkeys(s.method for run in self.runs for s in run.scores))

    def removed(self, target: str, scope: str) -> Tuple[str, ...]:
        """The experts that are not there for a target; see ``SCOPES``."""
        return removals(target, self.families[target])[scope]

    def score(self, run: LeftOutRun, target: str, scope: str,
              method: str) -> Optional[LeftOutScore]:
        """One cell; None if it was not evaluated.

        The oracle is the same whatever is removed: it has its own expert.
        """
        removed = self.removed(target, 'none' if method == ORACLE else scope)
        return next(
            (s for s in run.scores
             if (s.target, s.removed, s.method) == (target, removed, method)),
            None)

    def values(
        self,
        scope: str,
        method: str,
        of: Callable[[LeftOutScore], float] = lambda score: score.miou
    ) -> np.ndarray:
        """One figure of every target in every run.

        Args:
            scope (str): One of ``SCOPES``.
            method (str): One of :attr:`methods`.
            of (Callable): The figure. Defaults to mIoU in per cent.

        Returns:
            np.ndarray: (R, T); NaN where nothing was evaluated.
        """
        found = np.full((len(self.runs), len(self.tasks)), np.nan)
        for row, run in enumerate(self.runs):
            for column, target in enumerate(self.tasks):
                score = self.score(run, target, scope, method)
                if score is not None:
                    found[row, column] = of(score)
        return found

    def mean(self, scope: str, method: str) -> Spread:
        """Over the runs: arithmetic mean of mIoU over the targets."""
        return spread(self.values(scope, method).mean(1))

    def harmonic(self, scope: str, method: str) -> Spread:
        """Over the runs: harmonic mean over the targets, as SemLA's h-mean.

        ``T / sum_t (1 / mIoU_t)``; one target at 0 makes it 0.
        """
        return spread([
            math.nan if np.isnan(row).any() else float(
                harmonic_mean(row.tolist()))
            for row in self.values(scope, method)
        ])

    def leaks_of(self, removed: Tuple[str, ...]) -> List[Leak]:
        """Leaks of any run where these experts are not there."""
        return list(
            dict.fromkeys(leak for run in self.runs for leak in run.leaks
                          if leak.removed == removed))

    def save(self, path: PathLike) -> None:
        """Write the file; a crash leaves the old one whole.

        Raises:
            OSError: If the disk is full or fails; names the file.
        """
        write_json(
            path,
            dict(
                schema=LEFT_OUT_SCHEMA,
                stream=self.stream,
                method=self.method,
                tasks=list(self.tasks),
                families={
                    n: list(f)
                    for n, f in self.families.items()
                },
                gate=dict(self.gate),
                runs=[run.to_document() for run in self.runs]))

    @classmethod
    def load(cls, path: PathLike) -> 'LeaveOneOut':
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: If it is no such file; names file and field.
            FileNotFoundError: If there is none.
        """
        document = read_json(path)
        try:
            return cls._parse(document)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f'{path} holds no leave-one-out scores of schema '
                             f'{LEFT_OUT_SCHEMA} ({error}): run '
                             'tools/leave_one_out.py again') from error

    @classmethod
    def _parse(cls, document: Any) -> 'LeaveOneOut':
        check_keys(document, KEYS, 'the file')
        if document['schema'] != LEFT_OUT_SCHEMA:
            raise ValueError(f'schema is {document["schema"]!r}')
        for name in ('stream', 'method'):
            check_type(document[name], str, name)
        tasks = check_tasks(document['tasks'])
        check_keys(document['families'], tasks, 'families')
        check_type(document['gate'], dict, 'gate')
        return cls(document['stream'], document['method'], tuple(tasks), {
            n: tuple(f)
            for n, f in document['families'].items()
        }, document['gate'],
                   tuple(map(LeftOutRun.from_document, document['runs'])))


def scopes_of(results: LeaveOneOut) -> List[str]:
    """Scopes with a table of their own: the family's only if it differs."""
    return [s for s in SCOPES if s != 'family' or results.has_families]
