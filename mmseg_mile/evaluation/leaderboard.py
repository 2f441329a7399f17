# SPDX-License-Identifier: Apache-2.0
"""Leaderboard: methods side by side, from the runs that may be compared.

Joined are runs of one schema, one stream and one order of tasks that were
scored on the same images; the seeds of a method are joined if all its other
settings agree. Selection runs, whose images are not the reported ones, are
left out. Nothing is dropped in silence: each run that is left out is named
with the reason, and so is what differs without making the numbers worthless.
"""
from __future__ import annotations

import math
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import (TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple,
                    Optional, Sequence, Tuple)

import numpy as np

from mmseg_mile.files import PathLike, read_json, write_text
from .bootstrap import NUM_DRAWS, Difference, Images, paired_bootstrap
from .continual_scores import (Spread, average_miou, delta_m, growth_per_task,
                               spread)
from .results import StreamResults
from .routing_log import read_routing_log, routing_log_path
from .tables import SCORE_MEANINGS, markdown_table

if TYPE_CHECKING:
    import pandas as pd

REFERENCE = 'one model per task'
INTRODUCTION = (
    'Mean ± sample standard deviation over the seeds ("-" for one seed), '
    'mIoU of the routed predictions. Rank by average among methods that get '
    'neither a task label nor old images; the others stand where their score '
    'puts them and say what they get.')
# The seed, and the earlier run that a run of this seed builds upon.
_OF_THE_SEED = ('randomness.seed', 'train_cfg.experts_from')
# Settings that methods may choose, but that a reader has to know.
_BUDGETS = ('train_cfg.max_iters', 'train_dataloader.batch_size')
_MAX_SHOWN = 3


class Column(NamedTuple):
    """A figure by its key; it is shown times ``scale``."""
    key: str
    heading: str
    decimals: int = 1
    scale: float = 1.0


# yapf: disable
SCORES = (
    Column('average_miou', 'average'),
    Column('plasticity', 'just learned'),
    Column('forgetting', 'forgetting'),
    Column('delta_m', 'Delta_m %'),
    Column('gate_accuracy', 'gate %'),
    Column('oracle_gap', 'oracle gap'))
MORE_SCORES = (
    Column('harmonic_mean_miou', 'harmonic mean'),
    Column('backward_transfer', 'backward transfer'),
    Column('forward_transfer', 'forward transfer'),
    Column('stability', 'stability', 3),
    Column('oracle_miou', 'oracle'),
    Column('mismatch_drop', 'mismatch drop'))
COSTS = (
    Column('kept_params', 'kept (M)', 2, 1e-6),
    Column('params_per_task', 'M / task', 3, 1e-6),
    Column('kept_bytes', 'kept (MB)', 1, 1e-6),
    Column('bytes_per_task', 'MB / task', 2, 1e-6),
    Column('seconds_per_task', 's / task', 0),
    Column('macs', 'GMACs', 2, 1e-9),
    Column('net_score', 'NetScore'))
# yapf: enable
MEANINGS = dict(
    SCORE_MEANINGS,
    delta_m='mean relative change of mIoU against one model per task; higher '
    'is better',
    oracle_miou='%, average mIoU when routed by the true task',
    kept_params='millions of values that have to be kept at the end: '
    'weights, statistics, prototypes',
    params_per_task='millions that each task after the first one adds',
    kept_bytes='megabytes on disk at the end',
    bytes_per_task='megabytes that each task after the first one adds',
    seconds_per_task='mean training time of a task, in seconds',
    macs='billions of multiply-adds to predict one image')


class FinishedRun(NamedTuple):
    """A run that has scored every task.

    Args:
        name (str): Its folder, below what all folders have in common.
        results (StreamResults): What it measured.
        settings (dict): What its results depend on, by dotted name.
        folder (Path): Its work dir.
    """
    name: str
    results: StreamResults
    settings: Dict[str, Any]
    folder: Path

    def images(self) -> Images:
        """The images of each task, as scored after the last one."""
        path = routing_log_path(self.folder, self.results.tasks[-1])
        if not path.exists():
            raise ValueError(f'{self.name} has no routing_log/{path.name}')
        found: Images = {task: [] for task in self.results.tasks}
        for image in read_routing_log(path):
            found[image.task].append(image)
        return found


class LeftOut(NamedTuple):
    """A run that is in no table, and why."""
    run: str
    reason: str


@dataclass
class Row:
    """One method in the tables of one stream.

    Args:
        method (str): Its name.
        setting (dict): Help that it gets, see ``StreamResults.setting``.
        runs (list[FinishedRun]): n runs, one per seed, seeds ascending.
        run_figures (list[dict]): Figures of each of them.
        figures (dict[str, Spread]): Over the runs, by the key of the column;
            the mIoU of a task at the end under 'miou_<task>'.
        rank (int, optional): 1 for the highest average mIoU among methods
            that get neither a task label nor old images; None for others.
    """
    method: str
    setting: Dict[str, Any]
    runs: List[FinishedRun]
    run_figures: List[Dict[str, float]]
    figures: Dict[str, Spread]
    rank: Optional[int] = None

    @property
    def seeds(self) -> List[int]:
        """list[int]: Seeds of the runs."""
        return [run.results.seed for run in self.runs]

    @property
    def help(self) -> str:
        """str: What it gets beyond one task at a time; '' for nothing."""
        images = dict(
            none='', buffer='old images (buffer)', all='all images at once')
        parts = [
            'task label' * self.setting['task_label_at_test'],
            images[self.setting['old_images']]
        ]
        return ', '.join(part for part in parts if part)


class Comparison(NamedTuple):
    """The methods on one stream.

    Args:
        stream (str): Its name.
        tasks (tuple[str]): In the order in which they were learned.
        rows (list[Row]): One per method, best average first.
        notes (list[str]): What to know before the numbers are compared.
        differences (dict[str, Difference]): By method, to :attr:`compared`.
        compared (str): Method that the others are compared with.
    """
    stream: str
    tasks: Tuple[str, ...]
    rows: List[Row]
    notes: List[str]
    differences: Dict[str, Difference]
    compared: str


@dataclass
class Leaderboard:
    """A comparison per stream, and the runs that are in none.

    Args:
        comparisons (list[Comparison]): By stream and order of tasks.
        left_out (list[LeftOut]): By name of the run.
    """
    comparisons: List[Comparison]
    left_out: List[LeftOut]

    @property
    def titles(self) -> List[str]:
        """list[str]: Of the comparisons: the stream, and where it comes in
        several orders, its tasks."""
        counts = Counter(c.stream for c in self.comparisons)
        return [
            c.stream
            if counts[c.stream] == 1 else f'{c.stream}: {" → ".join(c.tasks)}'
            for c in self.comparisons
        ]

    @property
    def stems(self) -> List[str]:
        """list[str]: Of the comparisons, names for their files."""
        stems = [re.sub(r'[^\w.]+', '-', title) for title in self.titles]
        counts = [stems[:i + 1].count(stem) for i, stem in enumerate(stems)]
        return [
            stem if count == 1 else f'{stem}-{count}'
            for stem, count in zip(stems, counts)
        ]


def read_leaderboard(roots: Sequence[PathLike],
                     reference: str = REFERENCE,
                     compare: Optional[str] = None) -> Leaderboard:
    """Compare every run in or below some folders.

    Args:
        roots (Sequence[PathLike]): Work dirs, or folders that hold some.
        reference (str): Method that ``Delta_m`` is taken against. Defaults
            to 'one model per task'.
        compare (str, optional): Method that the others are compared with by
            :func:`paired_bootstrap`. Defaults to None: the one of rank 1.

    Raises:
        ValueError: If a folder does not exist.
    """
    runs, left_out = _read_runs(roots)
    streams: Dict[Tuple[str, Tuple[str, ...]], List[FinishedRun]] = {}
    for run in runs:
        key = (run.results.stream, tuple(run.results.tasks))
        streams.setdefault(key, []).append(run)
    comparisons = []
    for (stream, tasks), members in sorted(streams.items()):
        kept, dropped = _joinable(members)
        left_out += dropped
        rows, notes = _rows(kept, reference), _notes(kept)
        if reference not in {row.method for row in rows}:
            notes.insert(0, f'No run of {reference!r}: Delta_m is not known.')
        differences, compared, why = _differences(rows, compare)
        comparisons.append(
            Comparison(stream, tasks, rows, notes + why, differences,
                       compared))
    return Leaderboard(comparisons, sorted(left_out))


# -- reading -------------------------------------------------------------


def _read_runs(
        roots: Sequence[PathLike]) -> Tuple[List[FinishedRun], List[LeftOut]]:
    """Finished runs by name, and those that cannot be read."""
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
            runs.append(_read_run(folder, name))
        except (ValueError, OSError) as error:
            reason = str(error).replace(str(folder), name)
            left_out.append(LeftOut(name, reason))
    return runs, left_out


def _work_dirs(root: Path) -> List[Path]:
    found = []
    for folder, subfolders, files in os.walk(root):
        if {'results.json', 'settings.json'} & {*files}:
            found.append(Path(folder))
            subfolders.clear()
        elif 'workers' in subfolders:
            # tasks that are learned at the same time, each in a work dir
            subfolders.remove('workers')
    return found


def _read_run(folder: Path, name: str) -> FinishedRun:
    if not (folder / 'results.json').exists():
        raise ValueError('no task is finished yet')
    results = StreamResults.load(folder / 'results.json')
    done, size = results.num_finished_rows, len(results.tasks)
    if done < size:
        raise ValueError(f'{results.method}, seed {results.seed}, has '
                         f'finished {done} of {size} tasks')
    if results.selection_share is not None:
        raise ValueError(
            f'{results.method}, seed {results.seed}, is a selection run '
            f'(train_cfg.selection_share={results.selection_share}): it is '
            'scored on images held out of training, not on the reported ones')
    settings = read_json(folder / 'settings.json')
    return FinishedRun(name, results, _flatten(settings), folder)


def _flatten(value: Any, name: str = '') -> Dict[str, Any]:
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
        found.update(_flatten(item, f'{name}.{key}' if name else str(key)))
    return found


# -- comparing -----------------------------------------------------------


def _joinable(
        runs: List[FinishedRun]) -> Tuple[List[FinishedRun], List[LeftOut]]:
    """Runs of one stream that can be in one table, and the others."""
    runs, left_out = _agreeing(
        runs, _is_of_the_images,
        'is scored on other images than the {count} runs of this stream '
        'that are shown')
    kept: List[FinishedRun] = []
    for method, members in _by_method(runs).items():
        members, dropped = _agreeing(
            members, lambda name: name not in _OF_THE_SEED,
            f'has other settings than the {{count}} of {method!r} that are '
            'shown (train_cfg.method names a variant)')
        left_out += dropped
        seeds: Dict[int, FinishedRun] = {}
        for run in members:
            shown = seeds.setdefault(run.results.seed, run)
            if shown is not run:
                left_out.append(
                    LeftOut(
                        run.name, f'is {method!r} with seed '
                        f'{run.results.seed} once more, {shown.name} is shown')
                )
        kept += [seeds[seed] for seed in sorted(seeds)]
    return kept, left_out


def _is_of_the_images(setting: str) -> bool:
    # how a method prepares an image, its pipeline, is its own affair
    return (setting.startswith('train_cfg.tasks.')
            and '.val_dataset.' in setting and '.pipeline' not in setting)


def _agreeing(runs: List[FinishedRun], must_agree: Callable[[str], bool],
              complaint: str) -> Tuple[List[FinishedRun], List[LeftOut]]:
    """The largest group of runs of the same settings, and the others.

    Of equally large groups the one with the first run stays.
    """
    parts = [{
        k: v
        for k, v in sorted(run.settings.items()) if must_agree(k)
    } for run in runs]
    counts = Counter(map(repr, parts))
    most = max(counts, key=counts.__getitem__)
    shown = parts[[repr(part) for part in parts].index(most)]
    kept, left_out = [], []
    for run, part in zip(runs, parts):
        if repr(part) == most:
            kept.append(run)
        else:
            reason = complaint.format(count=counts[most])
            left_out.append(
                LeftOut(run.name, f'{reason}: {_difference(part, shown)}'))
    return kept, left_out


def _difference(mine: Dict[str, Any], shown: Dict[str, Any]) -> str:
    parts = [
        f'{name} {_short(mine.get(name))} instead of '
        f'{_short(shown.get(name))}' for name in sorted({*mine, *shown})
        if mine.get(name) != shown.get(name)
    ]
    more = len(parts) - _MAX_SHOWN
    return ', '.join(
        parts[:_MAX_SHOWN]) + (f' and {more} more' if more > 0 else '')


def _notes(runs: Sequence[FinishedRun]) -> List[str]:
    """Settings that differ between the runs of a table."""
    methods = _by_method(runs)

    def values(run: FinishedRun) -> Dict[str, Any]:
        made = run.results.provenance
        seeds = [str(r.results.seed) for r in methods[run.results.method]]
        return {
            'seeds': ', '.join(seeds),
            **{
                name: run.settings.get(name)
                for name in _BUDGETS
            }, 'commit': made['commit'],
            'version of torch': made['versions'].get('torch'),
            'device, so times do not compare': made['device']
        }

    notes = []
    for what in values(runs[0]):
        users: Dict[str, set] = {}
        for run in runs:
            value = _short(values(run)[what])
            users.setdefault(value, set()).add(run.results.method)
        most = max(sorted(users), key=lambda value: len(users[value]))
        parts = []
        for value, names in sorted(users.items()):
            shown = ', '.join(sorted(names))
            if value == most and len(names) > _MAX_SHOWN:
                shown = f'{len(names)} methods'
            parts.append(f'{value}: {shown}')
        if len(users) > 1:
            notes.append(f'Not the same for all: {what} ({"; ".join(parts)}).')
    return notes


def _by_method(runs: Sequence[FinishedRun]) -> Dict[str, List[FinishedRun]]:
    methods: Dict[str, List[FinishedRun]] = {}
    for run in runs:
        methods.setdefault(run.results.method, []).append(run)
    return dict(sorted(methods.items()))


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


# -- figures -------------------------------------------------------------


def _rows(runs: Sequence[FinishedRun], reference: str) -> List[Row]:
    """A row per method, best average first."""
    methods = _by_method(runs)
    base = np.full(len(runs[0].results.tasks), np.nan)
    if reference in methods:
        alone = [run.results.miou['routed'][-1] for run in methods[reference]]
        base = np.mean(alone, axis=0)
    rows = []
    for method, members in methods.items():
        each = [_figures(run.results, base) for run in members]
        figures = {key: spread([f[key] for f in each]) for key in each[0]}
        setting = members[0].results.setting
        rows.append(Row(method, setting, members, each, figures))
    rows.sort(key=lambda row: -row.figures['average_miou'].mean)
    for rank, row in enumerate([row for row in rows if not row.help], 1):
        row.rank = rank
    return rows


def _figures(results: StreamResults,
             reference: np.ndarray) -> Dict[str, float]:
    """Every figure of a run, against (T,) mIoU of one model per task."""
    cost, last = results.cost, results.miou['routed'][-1]
    found = dict(
        results.scores,
        delta_m=delta_m(last, reference),
        gate_accuracy=100 * results.gate_accuracy,
        oracle_miou=average_miou(results.miou['oracle']),
        kept_params=float(cost.kept_params[-1]),
        params_per_task=growth_per_task(cost.kept_params),
        kept_bytes=float(cost.kept_bytes[-1]),
        bytes_per_task=growth_per_task(cost.kept_bytes),
        seconds_per_task=float(np.mean(cost.train_seconds)),
        macs=math.nan if cost.macs is None else float(cost.macs))
    for task, value in zip(results.tasks, last):
        found[f'miou_{task}'] = float(value)
    return found


def _differences(
        rows: Sequence[Row], compare: Optional[str]
) -> Tuple[Dict[str, Difference], str, List[str]]:
    """By method, to the one compared; its name; what could not be."""
    known = {row.method: row for row in rows}
    ours = known.get(compare or '') or next(
        (row for row in rows if row.rank == 1), rows[0])
    notes = []
    if compare is not None and compare not in known:
        notes.append(f'No run of {compare!r}: {ours.method!r} is compared.')
    images: Dict[str, Images] = {}

    def of(run: FinishedRun) -> Images:
        if run.name not in images:
            images[run.name] = run.images()
        return images[run.name]

    found, failed = {}, {}
    for row in rows:
        seeds = [seed for seed in row.seeds if seed in ours.seeds]
        if row is ours or not seeds:
            continue
        try:
            theirs, mine = ([
                of(run) for run in side.runs if run.results.seed in seeds
            ] for side in (row, ours))
            found[row.method] = paired_bootstrap(theirs, mine)
        except (ValueError, OSError) as error:
            failed[row.method] = str(error)
    if failed:
        notes.append(
            f'Not compared with {ours.method!r} image by image: '
            f'{", ".join(failed)} ({_short(next(iter(failed.values())))}).')
    return found, ours.method, notes


# -- tables --------------------------------------------------------------


class ShownTable(NamedTuple):
    """One table of a comparison.

    Args:
        name (str): Of its file.
        title (str): Of the table.
        frame (pd.DataFrame): Cells as they are shown, a row per method.
        meanings (list[str]): Meanings of its columns, a sentence each.
    """
    name: str
    title: str
    frame: 'pd.DataFrame'
    meanings: List[str]


def tables_of(comparison: Comparison) -> List[ShownTable]:
    """Scores, the score of each task, more scores, and costs.

    Columns of which no method has a figure are left out, and so are the
    deviations where every method has one seed.
    """
    rows = comparison.rows
    spreads = any(len(row.runs) > 1 for row in rows)
    tasks = [Column(f'miou_{task}', task) for task in comparison.tasks]
    parts = (('scores', 'Scores', SCORES, spreads),
             ('tasks', 'mIoU of each task at the end, %', tasks,
              spreads), ('more_scores', 'More scores', MORE_SCORES, spreads),
             ('costs', 'Costs, mean over the seeds', COSTS, False))
    tables = [_table(rows, *part) for part in parts]
    if comparison.differences:
        tables.insert(1, _difference_table(comparison))
    return tables


def _difference_table(comparison: Comparison) -> ShownTable:
    """Differences of average mIoU, with what images and seeds leave open."""
    lines = [(method, f'{d.points:+.1f}', f'{d.low:+.1f} to {d.high:+.1f}',
              ' '.join(f'{points:+.1f}' for points in d.by_seed),
              'yes' if d.is_significant else 'no')
             for method, d in comparison.differences.items()]
    columns = ('method', 'difference', '95 % interval', 'by seed',
               'significant')
    return ShownTable(
        'differences', f'Difference to {comparison.compared}, points',
        _frame(lines, columns), [
            f'95 % interval: of the difference of average mIoU, {NUM_DRAWS:,} '
            'draws of the sequences of each task, the same for both methods; '
            'of a task with one sequence, of its images, which is too narrow',
            'significant: the interval does not hold 0, and all seeds have '
            'the sign of the difference'
        ])


def _table(rows: List[Row], name: str, title: str, columns: Sequence[Column],
           deviation: bool) -> ShownTable:
    cells: List[Tuple[str, List[str]]]
    cells = [('method', [row.method for row in rows])]
    if name == 'scores':
        cells.append(('rank', [str(row.rank or '-') for row in rows]))
    meanings = []
    for column in columns:
        values = [row.figures[column.key] for row in rows]
        if not all(math.isnan(value.mean) for value in values):
            cells.append(
                (column.heading, [_cell(v, column, deviation)
                                  for v in values]))
            if column.key in MEANINGS:
                meanings.append(f'{column.heading}: {MEANINGS[column.key]}')
    if name == 'scores':
        cells.append(('seeds', [str(len(row.runs)) for row in rows]))
        cells.append(('gets', [row.help for row in rows]))
    headings, shown = zip(*cells)
    return ShownTable(name, title, _frame(zip(*shown), headings), meanings)


def _cell(value: Spread, column: Column, deviation: bool) -> str:
    """'52.0 ± 2.8'; '52.0 ± -' for one seed; '-' where it is not known."""

    def number(figure: float) -> str:
        # Adding zero turns -0.0 into 0.0.
        shown = round(column.scale * figure, column.decimals) + 0.0
        return '-' if math.isnan(shown) else f'{shown:,.{column.decimals}f}'

    if math.isnan(value.mean) or not deviation:
        return number(value.mean)
    return f'{number(value.mean)} ± {number(value.deviation)}'


def markdown(leaderboard: Leaderboard) -> str:
    """The whole leaderboard as Markdown."""
    lines = ['# Leaderboard', '', INTRODUCTION, '']
    meanings: Dict[str, None] = {}
    for comparison, title in zip(leaderboard.comparisons, leaderboard.titles):
        lines += [f'## {title}', '', ' → '.join(comparison.tasks), '']
        for table in tables_of(comparison):
            lines += [
                f'**{table.title}**', '',
                markdown_table(table.frame), ''
            ]
            meanings.update(dict.fromkeys(table.meanings))
        if comparison.notes:
            lines += ['**Notes**', '', *(f'- {n}' for n in comparison.notes)]
            lines += ['']
    if not leaderboard.comparisons:
        lines += ['No run is finished.', '']
    for heading, items in (('Left out', [
            f'`{run}`: {reason}' for run, reason in leaderboard.left_out
    ]), ('Columns', meanings)):
        if items:
            lines += [f'## {heading}', '', *(f'- {i}' for i in items), '']
    return '\n'.join(lines)


def write_tables(leaderboard: Leaderboard, folder: PathLike) -> List[Path]:
    """Write the leaderboard as text.

    Returns:
        list[Path]: ``leaderboard.md``; ``leaderboard.csv`` with mean and
        deviation of each method, and ``runs.csv`` with a line per run, of
        full precision.
    """
    methods, runs = [], []
    texts = {'leaderboard.md': markdown(leaderboard)}
    for comparison in leaderboard.comparisons:
        for row in comparison.rows:
            who = dict(
                stream=comparison.stream,
                tasks=' > '.join(comparison.tasks),
                method=row.method,
                **row.setting)
            spreads = {
                f'{key}_{name}': figure
                for key, value in row.figures.items()
                for name, figure in zip(('mean', 'sd'), value)
            }
            methods.append(
                dict(
                    who,
                    rank=str(row.rank or ''),
                    seeds=' '.join(map(str, row.seeds)),
                    **spreads))
            runs += [
                dict(who, seed=run.results.seed, run=run.name, **figures)
                for run, figures in zip(row.runs, row.run_figures)
            ]
    texts['leaderboard.csv'] = _csv(_frame(methods))
    texts['runs.csv'] = _csv(_frame(runs))
    for name, text in texts.items():
        write_text(Path(folder) / name, text)
    return [Path(folder) / name for name in texts]


def write_shown_tables(leaderboard: Leaderboard,
                       folder: PathLike) -> List[Path]:
    """Write each table as it is shown, ``<stream>_<table>.csv``."""
    paths = []
    for comparison, stem in zip(leaderboard.comparisons, leaderboard.stems):
        for table in tables_of(comparison):
            paths.append(Path(folder) / f'{stem}_{table.name}.csv')
            write_text(paths[-1], _csv(table.frame))
    return paths


def _frame(lines: Any,
           columns: Optional[Sequence[str]] = None) -> 'pd.DataFrame':
    import pandas as pd  # takes a third of a second: not with the package
    return pd.DataFrame(list(lines), columns=columns)


def _csv(frame: 'pd.DataFrame') -> str:
    return frame.to_csv(index=False, lineterminator='\n')
