# SPDX-License-Identifier: Apache-2.0
"""Methods side by side, from the runs that may be compared.

Joined are runs of one schema, one stream and one order of tasks that were
scored on the same images; the seeds of a method are joined if all its other
settings agree. Nothing is dropped in silence: what is left out is named with
the reason, and so is what differs without making the numbers worthless.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from mmseg_mile.files import PathLike
from .continual_scores import Spread, spread
from .finished_runs import FinishedRun, LeftOut, read_runs
from .run_differences import (budget_notes, evaluation_settings,
                              provenance_notes, show_difference,
                              training_settings)
from .score_columns import figures_of

REFERENCE = 'one model per task'


@dataclass(frozen=True)
class Standing:
    """One method in the table of one stream.

    Args:
        method (str): Its name.
        setting (dict): What it was given, see ``StreamResults.setting``.
        seeds (tuple[int]): n seeds, ascending.
        rank (int, optional): 1 for the highest average mIoU among methods
            that get neither a task label nor old images; None for others.
        tasks (tuple[Spread]): mIoU of each task at the end.
        figures (dict[str, Spread]): By the key of the column.
        runs (tuple[FinishedRun]): n runs, in the order of ``seeds``.
        run_figures (tuple[dict]): Figures of each of them.
    """
    method: str
    setting: Dict[str, Any]
    seeds: Tuple[int, ...]
    rank: Optional[int]
    tasks: Tuple[Spread, ...]
    figures: Dict[str, Spread]
    runs: Tuple[FinishedRun, ...]
    run_figures: Tuple[Dict[str, float], ...]

    @property
    def help(self) -> str:
        """str: What it gets beyond one task at a time; '' for nothing."""
        images = dict(
            none='', buffer='old images (buffer)', all='all images at once')
        label = 'task label' * self.setting['task_label_at_test']
        parts = [label, images[self.setting['old_images']]]
        return ', '.join(part for part in parts if part)


@dataclass(frozen=True)
class StreamBoard:
    """The methods on one stream, best average first.

    Args:
        stream (str): Its name.
        tasks (tuple[str]): In the order in which they were learned.
        standings (tuple[Standing]): One per method.
        notes (tuple[str]): What to know before the numbers are compared.
    """
    stream: str
    tasks: Tuple[str, ...]
    standings: Tuple[Standing, ...]
    notes: Tuple[str, ...]


@dataclass(frozen=True)
class Leaderboard:
    """A table per stream, and what is in none.

    Args:
        boards (tuple[StreamBoard]): By stream and order of tasks.
        left_out (tuple[LeftOut]): By name of the run.
    """
    boards: Tuple[StreamBoard, ...]
    left_out: Tuple[LeftOut, ...]

    @property
    def titles(self) -> Tuple[str, ...]:
        """tuple[str]: Of the boards: the stream, and where it comes in
        several orders, its tasks."""
        streams = [board.stream for board in self.boards]
        return tuple(
            board.stream if streams.count(board.stream) ==
            1 else f'{board.stream}: {" → ".join(board.tasks)}'
            for board in self.boards)


def read_leaderboard(roots: Sequence[PathLike],
                     reference: str = REFERENCE) -> Leaderboard:
    """Compare every run in or below some folders.

    Args:
        roots (Sequence[PathLike]): Work dirs, or folders that hold some.
        reference (str): Method that ``Delta_m`` is taken against. Defaults
            to 'one model per task'.

    Raises:
        ValueError: If a folder does not exist.
    """
    runs, left_out = read_runs(roots)
    board = compare(runs, reference)
    return Leaderboard(board.boards,
                       tuple(sorted([*left_out, *board.left_out])))


def compare(runs: Sequence[FinishedRun],
            reference: str = REFERENCE) -> Leaderboard:
    """Join runs that may be compared.

    Args:
        runs (Sequence[FinishedRun]): In any order.
        reference (str): Method that ``Delta_m`` is taken against.
    """
    streams: Dict[Tuple[str, Tuple[str, ...]], List[FinishedRun]] = {}
    for run in sorted(runs, key=lambda run: run.name):
        key = (run.results.stream, tuple(run.results.tasks))
        streams.setdefault(key, []).append(run)
    boards, left_out = [], []
    for (stream, tasks), members in sorted(streams.items()):
        kept, dropped = _joinable(members)
        left_out += dropped
        boards.append(_board(stream, tasks, kept, reference))
    return Leaderboard(tuple(boards), tuple(sorted(left_out)))


def _joinable(
        runs: List[FinishedRun]) -> Tuple[List[FinishedRun], List[LeftOut]]:
    """Runs of one stream that can be in one table, and the others."""
    runs, left_out = _agreeing(
        runs, evaluation_settings,
        'is scored on other images than the {count} runs of this stream '
        'that are shown')
    kept: List[FinishedRun] = []
    for method in sorted({run.results.method for run in runs}):
        members, dropped = _agreeing(
            [run for run in runs if run.results.method == method],
            training_settings,
            f'has other settings than the {{count}} of {method!r} that are '
            'shown (train_cfg.method names a variant)')
        left_out += dropped
        seeds: Dict[int, FinishedRun] = {}
        for run in members:
            seed = run.results.seed
            if seed in seeds:
                left_out.append(
                    LeftOut(
                        run.name, f'is {method!r} with seed {seed} once '
                        f'more, {seeds[seed].name} is shown'))
            seeds.setdefault(seed, run)
        kept += [seeds[seed] for seed in sorted(seeds)]
    return kept, left_out


def _agreeing(runs: List[FinishedRun],
              part: Callable[[FinishedRun], Optional[Dict[str, Any]]],
              complaint: str) -> Tuple[List[FinishedRun], List[LeftOut]]:
    """The largest group of equal settings, and the others.

    Of equally large groups the one with the first run stays. Runs whose
    settings were not kept stay.
    """
    groups: Dict[str, List[FinishedRun]] = {}
    for run in runs:
        settings = part(run)
        if settings is not None:
            groups.setdefault(repr(sorted(settings.items())), []).append(run)
    if len(groups) < 2:
        return runs, []
    largest = max(groups.values(), key=len)
    left_out = []
    for run in runs:
        settings = part(run)
        if settings is None or run in largest:
            continue
        shown = part(largest[0]) or {}
        left_out.append(
            LeftOut(
                run.name,
                complaint.format(count=len(largest)) + ': ' +
                show_difference(settings, shown)))
    names = {entry.run for entry in left_out}
    return [run for run in runs if run.name not in names], left_out


def _board(stream: str, tasks: Tuple[str, ...], runs: List[FinishedRun],
           reference: str) -> StreamBoard:
    alone = [
        run.results.miou['routed'][-1] for run in runs
        if run.results.method == reference
    ]
    base = np.mean(alone, axis=0) if alone else None
    methods: Dict[str, List[FinishedRun]] = {}
    for run in runs:
        methods.setdefault(run.results.method, []).append(run)
    standings = sorted(
        (_standing(members, base) for members in methods.values()),
        key=lambda s: (-s.figures['average_miou'].mean, s.method))
    notes = [*budget_notes(runs), *provenance_notes(runs)]
    if base is None:
        notes.insert(0, f'No run of {reference!r}: Delta_m is not known.')
    return StreamBoard(stream, tasks, tuple(_ranked(standings)), tuple(notes))


def _standing(runs: List[FinishedRun], base: Optional[np.ndarray]) -> Standing:
    figures = tuple(figures_of(run.results, base) for run in runs)
    last_rows = np.array([run.results.miou['routed'][-1] for run in runs])
    return Standing(
        method=runs[0].results.method,
        setting=runs[0].results.setting,
        seeds=tuple(run.results.seed for run in runs),
        rank=None,
        tasks=tuple(spread(column) for column in last_rows.T),
        figures={key: spread([f[key] for f in figures])
                 for key in figures[0]},
        runs=tuple(runs),
        run_figures=figures)


def _ranked(standings: List[Standing]) -> List[Standing]:
    ranks = iter(range(1, len(standings) + 1))
    return [s if s.help else replace(s, rank=next(ranks)) for s in standings]
