# SPDX-License-Identifier: Apache-2.0
"""Leave one out: every task predicted without the expert that learned it.

The protocol of SemLA (Qorbani et al., CVPR 2025, arXiv 2503.21780), and with
all the experts of a task's family gone as well: there, the fog of ACDC is
left out while rain, snow and night of the same drives stay.
"""
from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import harmonic_mean
from typing import Any, Callable, Dict, List, Mapping, Tuple

import numpy as np
import pandas as pd

from mmseg_mile.files import PathLike, read_json, write_json
from .continual_scores import Spread, spread
from .results import write_numbers
from .tables import markdown_table

SCHEMA = 2
ORACLE, BASE, UNIFORM, NEAREST, FUSED = ('oracle', 'base', 'uniform',
                                         'nearest', 'fused')
UNIFORM_ADAPTERS, FUSED_ADAPTERS = 'uniform_adapters', 'fused_adapters'
UNIFORM_OUTPUTS, FUSED_OUTPUTS = 'uniform_outputs', 'fused_outputs'
POLICIES = ('ood_fuse', 'ood_base', 'ood_abstain')
TAU = 'fused_adapters_tau_'
#: Experts that are removed: none, the target's own, its family's.
SCOPES = ('none', 'own', 'family')
TITLES: Dict[str, str] = {
    ORACLE: 'oracle: own expert',
    BASE: 'base without expert (zero-shot)',
    NEAREST: 'nearest expert',
    UNIFORM: 'uniform: adapters and heads',
    FUSED: 'SemLA: adapters and heads',
    UNIFORM_ADAPTERS: 'uniform: adapters, nearest head',
    FUSED_ADAPTERS: 'SemLA: adapters, nearest head',
    UNIFORM_OUTPUTS: 'uniform: outputs',
    FUSED_OUTPUTS: 'SemLA: outputs',
    POLICIES[0]: 'nearest; flagged: fused',
    POLICIES[1]: 'nearest; flagged: base',
    POLICIES[2]: 'nearest; flagged: no prediction',
}
#: What SemLA compares, in the order of its table.
COMPARED = (ORACLE, BASE, NEAREST, UNIFORM, FUSED, UNIFORM_ADAPTERS,
            FUSED_ADAPTERS, UNIFORM_OUTPUTS, FUSED_OUTPUTS)
_WITH_ALL = (ORACLE, NEAREST, FUSED, FUSED_ADAPTERS, FUSED_OUTPUTS, *POLICIES)
_HEADINGS = dict(
    none='No expert removed',
    own="The target's own expert removed",
    family="The experts of the target's family removed")
# Behind a score whose target is not left out entirely.
_MARKS = dict(base='†', experts='‡')


@dataclass(frozen=True)
class Score:
    """One method on the images of one task, without some experts.

    Args:
        target (str): The task.
        removed (tuple[str]): Experts that are not there.
        method (str): Key of ``TITLES``, or ``TAU`` and a temperature.
        images (int): Of the task.
        answered (int): That got a prediction.
        flagged (int): That the gate flags as out-of-distribution.
        miou (float): In per cent, over the images that got a prediction and
            the target's own classes, compared by name; NaN without any.
    """
    target: str
    removed: Tuple[str, ...]
    method: str
    images: int
    answered: int
    flagged: int
    miou: float

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> 'Score':
        """Read the JSON of ``asdict``."""
        values = dict(document, removed=tuple(document['removed']))
        if values['miou'] is None:
            values['miou'] = math.nan
        return cls(**values)


@dataclass(frozen=True)
class Leak:
    """A way in which what was removed is still there.

    Args:
        removed (tuple[str]): Tasks whose experts are not there.
        kind (str): 'base': it was trained on one of them. 'experts':
            experts that are there started from one that is not.
        through (tuple[str]): The removed task whose images the base has
            seen, or the experts that are there.
    """
    removed: Tuple[str, ...]
    kind: str
    through: Tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """All scores of one seed, what leaked, and what made them."""
    seed: int
    leaks: Tuple[Leak, ...]
    scores: Tuple[Score, ...]
    provenance: Mapping[str, Any]

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> 'Run':
        """Read the JSON of ``asdict``."""
        leaks = (
            Leak(tuple(leak['removed']), leak['kind'], tuple(leak['through']))
            for leak in document['leaks'])
        return cls(document['seed'], tuple(leaks),
                   tuple(map(Score.from_document, document['scores'])),
                   document['provenance'])


@dataclass(frozen=True)
class LeaveOneOut:
    """The protocol over the seeds of one method on one stream.

    Args:
        stream (str): Its name.
        method (str): How base and experts were trained.
        tasks (tuple[str]): Targets, in the order they were learned in.
        families (dict[str, tuple[str]]): By task, the tasks of its origin,
            itself included.
        gate (dict): Options of the gate that weighs experts.
        runs (tuple[Run]): One per seed.
    """
    stream: str
    method: str
    tasks: Tuple[str, ...]
    families: Mapping[str, Tuple[str, ...]]
    gate: Mapping[str, Any]
    runs: Tuple[Run, ...]

    @property
    def scopes(self) -> List[str]:
        """list[str]: The family's only if a family has several tasks."""
        several = any(len(names) > 1 for names in self.families.values())
        return [scope for scope in SCOPES if scope != 'family' or several]

    @property
    def methods(self) -> List[str]:
        """list[str]: All that were evaluated, in order."""
        return list(
            dict.fromkeys(s.method for run in self.runs for s in run.scores))

    def removed(self, target: str, scope: str) -> Tuple[str, ...]:
        """The experts that are not there for a target."""
        return removals(target, self.families[target])[scope]

    def values(
        self,
        scope: str,
        method: str,
        figure: Callable[[Score],
                         float] = lambda score: score.miou) -> np.ndarray:
        """One figure of every target in every run.

        The oracle is the same whatever is removed: it has its own expert.

        Args:
            scope (str): One of ``SCOPES``.
            method (str): One of :attr:`methods`.
            figure (Callable): Defaults to mIoU in per cent.

        Returns:
            np.ndarray: (R, T); NaN where nothing was evaluated.
        """
        found = np.full((len(self.runs), len(self.tasks)), np.nan)
        scope = 'none' if method == ORACLE else scope
        for row, run in enumerate(self.runs):
            for score in run.scores:
                if (score.method,
                        score.removed) == (method,
                                           self.removed(score.target, scope)):
                    found[row, self.tasks.index(score.target)] = figure(score)
        return found

    def mean(self, scope: str, method: str) -> Spread:
        """Over the runs: arithmetic mean of mIoU over the targets."""
        return spread(self.values(scope, method).mean(1))

    def harmonic(self, scope: str, method: str) -> Spread:
        """Over the runs: harmonic mean over the targets, as SemLA's h-mean.

        ``T / sum_t (1 / mIoU_t)``; one target at 0 makes it 0.
        """
        return spread([
            math.nan if np.isnan(row).any() else harmonic_mean(row.tolist())
            for row in self.values(scope, method)
        ])

    def leaks_of(self, target: str, scope: str) -> List[Leak]:
        """Leaks of any run into the scores of a target."""
        removed = self.removed(target, scope)
        return list(
            dict.fromkeys(leak for run in self.runs for leak in run.leaks
                          if leak.removed == removed))

    def save(self, path: PathLike) -> None:
        """Write the file; a crash leaves the old one whole."""
        write_json(path, write_numbers(dict(asdict(self), schema=SCHEMA)))

    @classmethod
    def load(cls, path: PathLike) -> 'LeaveOneOut':
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: If it is no such file; names it.
            FileNotFoundError: If there is none.
        """
        document = read_json(path)
        try:
            if document.pop('schema') != SCHEMA:
                raise ValueError('of another schema')
            document.update(
                tasks=tuple(document['tasks']),
                families={
                    name: tuple(family)
                    for name, family in document['families'].items()
                },
                runs=tuple(map(Run.from_document, document['runs'])))
            return cls(**document)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f'{path} holds no leave-one-out scores of schema {SCHEMA} '
                f'({error!r}): run tools/leave_one_out.py again') from error


def removals(target: str, family: Tuple[str,
                                        ...]) -> Dict[str, Tuple[str, ...]]:
    """The experts that are not there for a target, by scope."""
    return dict(none=(), own=(target, ), family=family)


def methods_of(scope: str) -> Tuple[str, ...]:
    """Methods that a scope is evaluated with."""
    return _WITH_ALL if scope == 'none' else (*COMPARED[1:], *POLICIES)


def title_of(method: str) -> str:
    """Title of a method in tables."""
    if method.startswith(TAU):
        return f'SemLA, tau {method[len(TAU):]}'
    return TITLES.get(method, method)


def markdown(results: LeaveOneOut) -> str:
    """All tables, and what to know of them."""
    seeds = [run.seed for run in results.runs]
    parts = [
        '# Leave one out',
        f'{results.method} on {results.stream}, seeds {seeds}: mIoU in per '
        "cent over the target's own classes, by name. Mean ± sample standard "
        'deviation over the seeds.',
        'Gate: ' + ', '.join(f'{k}={v}' for k, v in results.gate.items()) + '.'
    ]
    for scope in results.scopes:
        known = {ORACLE, *methods_of(scope)} & set(results.methods)
        rows = [m for m in COMPARED if m in known]
        parts += [f'## {_HEADINGS[scope]}', _mious(results, scope, rows)]
    parts += [
        '## What becomes of out-of-distribution images',
        _policies(results), 'Images that the gate flags, %:',
        _flagged(results)
    ]
    swept = [m for m in results.methods if m.startswith(TAU)]
    if swept:
        parts += [
            "## Temperature of SemLA's weights, own expert removed",
            _mious(results, 'own', swept)
        ]
    return '\n\n'.join([*parts, *_footnotes(results)]) + '\n'


def csv_lines(results: LeaveOneOut) -> str:
    """A line per seed, target, scope and method, full precision."""
    rows = []
    for run in results.runs:
        for score in run.scores:
            scope = next(
                s for s in SCOPES
                if results.removed(score.target, s) == score.removed)
            rows.append(
                dict(
                    asdict(score),
                    stream=results.stream,
                    trained_as=results.method,
                    seed=run.seed,
                    scope=scope,
                    removed='+'.join(score.removed),
                    leaks=' '.join(leak.kind for leak in run.leaks
                                   if leak.removed == score.removed)))
    columns = ('stream', 'trained_as', 'seed', 'target', 'scope', 'removed',
               'method', 'miou', 'images', 'answered', 'flagged', 'leaks')
    return pd.DataFrame(rows, columns=columns).to_csv(index=False)


def _mious(results: LeaveOneOut, scope: str, methods: List[str]) -> str:
    """mIoU by target, mean and harmonic mean."""
    return _table(results, ['method', 'mean', 'h-mean'], [[
        title_of(method), *_cells(results, scope, method),
        _shown(results.mean(scope, method)),
        _shown(results.harmonic(scope, method))
    ] for method in methods])


def _policies(results: LeaveOneOut) -> str:
    """Policies for flagged images, over what is removed."""
    rows = []
    for scope in results.scopes:
        for method in (NEAREST, *POLICIES):
            answered = 100 * results.values(scope, method,
                                            lambda s: s.answered / s.images)
            rows.append([
                scope,
                title_of(method), *_cells(results, scope, method),
                _shown(results.mean(scope, method)),
                _shown(spread(answered.mean(1)))
            ])
    return _table(results, ['removed', 'policy', 'mean', 'answered %'], rows)


def _flagged(results: LeaveOneOut) -> str:
    rows = []
    for scope in results.scopes:
        shares = 100 * results.values(scope, NEAREST,
                                      lambda s: s.flagged / s.images)
        rows.append([
            scope, *(_shown(spread(column)) for column in shares.T),
            _shown(spread(shares.mean(1)))
        ])
    return _table(results, ['removed', 'mean'], rows)


def _table(results: LeaveOneOut, columns: List[str],
           rows: List[List[str]]) -> str:
    """Columns of words, of every target, and of figures over all."""
    at = columns.index('mean')
    return markdown_table(
        pd.DataFrame(
            rows, columns=[*columns[:at], *results.tasks, *columns[at:]]))


def _cells(results: LeaveOneOut, scope: str, method: str) -> List[str]:
    """mIoU of each target, marked where it is not left out entirely."""
    found = []
    for target, column in zip(results.tasks, results.values(scope, method).T):
        kinds = {leak.kind for leak in results.leaks_of(target, scope)}
        marks = ''.join(mark for kind, mark in _MARKS.items() if kind in kinds)
        value = spread(column)
        marked = method != ORACLE and not math.isnan(value.mean)
        found.append(_shown(value) + marks * marked)
    return found


def _footnotes(results: LeaveOneOut) -> List[str]:
    """Explanation of the marks and of missing cells."""
    lines = []
    leaks = dict.fromkeys(leak for run in results.runs for leak in run.leaks)
    for leak in sorted(leaks, key=lambda leak: leak.kind):
        through = ', '.join(leak.through)
        how = (f'the base was trained on {through}' if leak.kind == 'base' else
               f'{through} started from an expert that was removed')
        lines.append(f'- {_MARKS[leak.kind]} without '
                     f'{" + ".join(leak.removed)}: not left out entirely, '
                     f'{how}.')
    bare = [
        target for target in results.tasks
        if set(results.families[target]) == set(results.tasks)
    ]
    if bare:
        lines.append(f'- No expert is left without the family of {bare}.')
    return ['\n'.join(lines)] if lines else []


def _shown(value: Spread) -> str:
    if math.isnan(value.mean):
        return '-'
    text = f'{value.mean:.1f}'
    return text if value.num_seeds < 2 else f'{text} ± {value.deviation:.1f}'
