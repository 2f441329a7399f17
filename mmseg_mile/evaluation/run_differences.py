# SPDX-License-Identifier: Apache-2.0
"""In what runs of a comparison differ, and whether that matters."""
from __future__ import annotations

from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence

from .finished_runs import FinishedRun

# The seed, and the earlier run that a run of this seed builds upon.
_OF_THE_SEED = ('randomness.seed', 'train_cfg.experts_from')
_MAX_SHOWN = 3
_ABSENT = 'not set'
# What methods may choose, but a reader has to know.
_BUDGETS = ('train_cfg.max_iters', 'train_dataloader.batch_size')

Settings = Dict[str, Any]


def training_settings(run: FinishedRun) -> Optional[Settings]:
    """What the seeds of a method must have in common."""
    if run.settings is None:
        return None
    return {k: v for k, v in run.settings.items() if k not in _OF_THE_SEED}


def evaluation_settings(run: FinishedRun) -> Optional[Settings]:
    """What all methods must have in common: the images they are scored on.

    How a method prepares an image, its pipeline, is its own affair.
    """
    if run.settings is None:
        return None
    return {
        key: value
        for key, value in run.settings.items()
        if key.startswith('train_cfg.tasks.') and '.val_dataset.' in key
        and '.pipeline' not in key
    }


def show_difference(mine: Settings, shown: Settings) -> str:
    """The first settings that differ, with both values."""
    names = sorted(key for key in {*mine, *shown}
                   if mine.get(key, _ABSENT) != shown.get(key, _ABSENT))
    parts = [
        f'{name} {_short(mine.get(name, _ABSENT))} instead of '
        f'{_short(shown.get(name, _ABSENT))}' for name in names[:_MAX_SHOWN]
    ]
    more = len(names) - _MAX_SHOWN
    return ', '.join(parts) + (f' and {more} more' if more > 0 else '')


def budget_notes(runs: Sequence[FinishedRun]) -> List[str]:
    """Seeds, iterations and batch sizes that differ between methods."""
    notes: List[str] = []
    seeds: Dict[str, List[int]] = {}
    for run in runs:
        seeds.setdefault(run.results.method, []).append(run.results.seed)
    notes += _differing(
        runs, 'seeds',
        lambda run: ', '.join(map(str, sorted(seeds[run.results.method]))))
    known = [run for run in runs if run.settings is not None]
    for name in _BUDGETS:
        notes += _differing(known, name, partial(_setting, name))
    without = sorted({r.results.method for r in runs if r.settings is None})
    if without:
        notes.append('Not kept are the settings of ' + ', '.join(without) +
                     ': whether they agree could not be checked.')
    return notes


def provenance_notes(runs: Sequence[FinishedRun]) -> List[str]:
    """Commits, versions of torch and devices that differ between runs."""

    def read(field: str) -> Callable[[FinishedRun], Any]:
        return lambda run: run.results.provenance[field]

    def torch_version(run: FinishedRun) -> Any:
        return (run.results.provenance['versions'] or {}).get('torch')

    return [
        *_differing(runs, 'commit', read('commit')),
        *_differing(runs, 'version of torch', torch_version),
        *_differing(runs, 'device, so times do not compare', read('device'))
    ]


def _setting(name: str, run: FinishedRun) -> Any:
    return (run.settings or {}).get(name, _ABSENT)


def _differing(runs: Sequence[FinishedRun], what: str,
               value_of: Callable[[FinishedRun], Any]) -> List[str]:
    methods: Dict[str, set] = {}
    for run in runs:
        methods.setdefault(_short(value_of(run)),
                           set()).add(run.results.method)
    if len(methods) < 2:
        return []
    largest = max(sorted(methods), key=lambda value: len(methods[value]))
    parts = []
    for value in sorted(methods):
        names = ', '.join(sorted(methods[value]))
        if value == largest and len(methods[value]) > _MAX_SHOWN:
            names = f'{len(methods[value])} methods'
        parts.append(f'{value}: {names}')
    return [f'Not the same for all: {what} ({"; ".join(parts)}).']


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'
