# SPDX-License-Identifier: Apache-2.0
"""Tables as text: results on a terminal of 100 columns, frames as Markdown.

A column of figures is aligned right, one with words left.
"""
from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Dict, List, Optional, Sequence

import numpy as np
from tabulate import tabulate

from .continual_scores import backward_transfer
from .results import KINDS, StreamResults

if TYPE_CHECKING:
    # takes a third of a second to import, which a run can do without
    import pandas as pd

WIDTH = 100
MAX_TASK_COLUMNS = 8
MAX_NAME = 20
_FIGURE = re.compile(r'[-+−]?[\d.]|-?$')

# Meaning of each score, in the order of the summary.
SCORE_MEANINGS = dict(
    average_miou='%, mean over tasks at the end',
    harmonic_mean_miou='%, harmonic mean over tasks at the end',
    plasticity='%, mean over tasks, each just learned',
    backward_transfer='points, old tasks: end - just learned',
    backward_transfer_oracle='the same, routed by the true task',
    forgetting='points, old tasks: best before - end; < 0 is a gain',
    stability='old tasks: end / just learned; 1 = nothing lost',
    forward_transfer='%, zero-shot, just before a task is learned',
    oracle_gap='points, lost to wrong routing',
    mismatch_drop='points, lost with a wrong expert forced',
    gate_accuracy='% of images routed to the expert of their task',
    net_score='accuracy against size and work, dB; higher is better')


def has_figures(cells: Sequence[str]) -> bool:
    """Whether a column holds figures, not words."""
    return all(_FIGURE.match(cell) for cell in cells)


def text_table(title: str, columns: Sequence[str],
               rows: Sequence[Sequence[str]]) -> str:
    """A table for the terminal, with its title above."""
    table = tabulate(
        rows,
        columns,
        tablefmt='pretty',
        disable_numparse=True,
        colalign=_alignments(list(zip(*rows))))
    return f'{title}\n{table}'


def markdown_table(frame: 'pd.DataFrame') -> str:
    """A frame of text as Markdown, without its index."""
    shown = frame.map(_escaped).rename(columns=_escaped)
    cells = [frame.iloc[:, index] for index in range(frame.shape[1])]
    return shown.to_markdown(
        index=False, disable_numparse=True, colalign=_alignments(cells))


def score_table(results: StreamResults) -> str:
    """Score matrix, routed and oracle, with the mean of the seen tasks.

    Side by side where both fit, else one below the other; the oracle only
    where it was evaluated. More than ``MAX_TASK_COLUMNS`` tasks leave only
    the new task and the means.
    """
    if len(results.tasks) > MAX_TASK_COLUMNS:
        return _means_table(results)
    kinds = _measured_kinds(results)
    tables = [_matrix_table(results, kind) for kind in kinds]
    if max(map(_width, tables)) > WIDTH:
        tables = [_matrix_table(results, kind, True) for kind in kinds]
    if sum(map(_width, tables)) + 2 > WIDTH:
        return '\n'.join(tables)
    widths = list(map(_width, tables))
    lines = zip(*(table.splitlines() for table in tables))
    return '\n'.join('  '.join(map(str.ljust, parts, widths)).rstrip()
                     for parts in lines)


def row_table(results: StreamResults, row: int) -> str:
    """One row of the score matrix: every task after learning task ``row``.

    The gate's accuracy per task is shown for the latest finished row, the
    one that its counts belong to.
    """
    shares = _gate_shares(results)
    if row != results.num_finished_rows - 1:
        shares[:] = np.nan
    rows = []
    for index, name in enumerate(results.tasks):
        state = 'new' if index == row else (
            'seen' if index < row else 'unseen')
        mious = [results.miou[kind][row, index] for kind in KINDS]
        rows.append([
            _short(name), state, *map(_number, mious),
            _number(100 * shares[index], 2)
        ])
    means = [_seen_mean(results, kind, row) for kind in KINDS]
    rows.append(['mean of seen', '', *map(_number, means), ''])
    title = (f'mIoU in % after task {row + 1} of {len(results.tasks)}: '
             f'{_short(results.tasks[row])}')
    return text_table(
        title, ['task', 'state', 'routed mIoU', 'oracle mIoU', 'gate % right'],
        rows)


def confusion_table(results: StreamResults) -> str:
    """Images per true task (rows) and chosen expert (columns).

    More than ``MAX_TASK_COLUMNS`` tasks leave the number of images and the
    most frequent wrong expert.
    """
    if not results.has_gate:
        return 'Gate: not measured.'
    counts, names = results.gate_confusion, results.tasks
    many = len(names) > MAX_TASK_COLUMNS
    rows = []
    for index, share in enumerate(_gate_shares(results)):
        cells = (
            _worst_expert(counts[index], index, names)
            if many else [_number(count, 0) for count in counts[index]])
        rows.append([
            f'{index + 1} {_short(names[index])}', *cells,
            _number(100 * share, 2)
        ])
    columns = (['images', 'most frequent wrong expert']
               if many else [str(index + 1) for index in range(len(names))])
    title = ('Gate: images per chosen expert, '
             f'{_number(100 * results.gate_accuracy, 2)} % right')
    return text_table(title, ['true task', *columns, '% right'], rows)


def cost_table(results: StreamResults) -> str:
    """Values and bytes that each task added, and its training time.

    'KiB' is the room of the expert on disk, 'kept' counts all the values
    that have to be kept after the task.
    """
    cost = results.cost
    experts = {entry['task']: entry for entry in cost.experts}
    parts = list(
        dict.fromkeys(
            key for entry in cost.experts for key in entry
            if key not in ('task', 'bytes')))
    headings = [part.rpartition('_')[0] for part in parts]
    headings += ['% of base', 'KiB'] * bool(experts)
    rows = []
    for name, seconds, kept in zip(results.tasks, cost.train_seconds,
                                   cost.kept_params / 1e6):
        cells = ['-'] * len(headings)
        if name in experts:
            entry = experts[name]
            added = sum(v for k, v in entry.items() if k.endswith('_params'))
            share = 100 * added / (cost.base_params or math.nan)
            cells = [f'{entry.get(part, 0):,}' for part in parts]
            cells += [_number(share, 2), f'{entry["bytes"] / 1024:,.0f}']
        rows.append([_short(name), *cells, _number(kept, 2), _number(seconds)])
    base = '-' if cost.base_params is None else f'{cost.base_params:,}'
    macs = math.nan if cost.macs is None else cost.macs / 1e9
    return text_table(
        f'Parameters per task (base: {base}), {_number(macs, 2)} GMACs an '
        'image', ['task', *headings, 'kept (M)', 'train s'], rows)


def summary_values(results: StreamResults) -> Dict[str, float]:
    """The value of every score that ``SCORE_MEANINGS`` explains."""
    size = max(results.num_finished_rows, 1)
    oracle = results.miou['oracle'][:size, :size]
    values = dict(
        results.scores,
        gate_accuracy=100 * results.gate_accuracy,
        backward_transfer_oracle=backward_transfer(oracle))
    return {name: values[name] for name in SCORE_MEANINGS}


def score_title(name: str) -> str:
    """A score's name as it is shown."""
    return name.replace('_', ' ').replace('miou', 'mIoU')


def score_decimals(name: str) -> int:
    """Decimals that a score is shown with."""
    return 3 if name == 'stability' else 2


def summary_table(results: StreamResults) -> str:
    """Every score of the run on a line of its own, with its meaning."""
    values = summary_values(results)
    rows = [[
        score_title(name),
        _number(values[name], score_decimals(name)), meaning
    ] for name, meaning in SCORE_MEANINGS.items()]
    title = (f'{_short(results.method)} on {_short(results.stream)}, '
             f'{results.num_finished_rows} of {len(results.tasks)} tasks, '
             f'seed {results.seed}')
    return text_table(title, ['score', 'value', 'meaning'], rows)


#: Tables that are printed at the end of a run.
CLOSING_TABLES = (score_table, confusion_table, cost_table, summary_table)


def cross_expert_table(tasks: Sequence[str], matrix: np.ndarray) -> str:
    """mIoU with one expert forced on all images of a task.

    Args:
        tasks (Sequence[str]): T names.
        matrix (np.ndarray): (T, T) per cent, rows tasks, columns experts;
            the diagonal holds the oracle's scores.
    """
    rows = []
    for index, task in enumerate(tasks):
        drop = matrix[index, index] - np.nanmean(
            np.delete(matrix[index], index))
        rows.append([task, *map(_number, (*matrix[index], drop))])
    return text_table(
        'Experts forced on other tasks',
        ['mIoU of task', *(f'expert {task}' for task in tasks), 'drop'], rows)


def _matrix_table(results: StreamResults,
                  kind: str,
                  numbered: bool = False) -> str:
    names = [_short(name) for name in results.tasks]
    columns = names
    if numbered:
        columns = [str(index + 1) for index in range(len(names))]
        names = [f'{number} {name}' for number, name in zip(columns, names)]
    rows = [[
        name, *map(_number, results.miou[kind][row]),
        _number(_seen_mean(results, kind, row))
    ] for row, name in enumerate(names)]
    return text_table(f'{kind} mIoU in %, mean of seen tasks',
                      ['after', *columns, 'mean'], rows)


def _means_table(results: StreamResults) -> str:
    kinds = _measured_kinds(results)
    rows = []
    for row, name in enumerate(results.tasks):
        cells = [
            value for kind in kinds
            for value in (results.miou[kind][row, row],
                          _seen_mean(results, kind, row))
        ]
        rows.append([f'{row + 1} {_short(name)}', *map(_number, cells)])
    return text_table('mIoU in %, mean of seen tasks', [
        'after', *(f'{kind}: {what}' for kind in kinds
                   for what in ('new task', 'mean'))
    ], rows)


def _measured_kinds(results: StreamResults) -> List[str]:
    return [
        kind for kind in KINDS
        if kind == 'routed' or not np.isnan(results.miou[kind]).all()
    ]


def _seen_mean(results: StreamResults, kind: str, row: int) -> float:
    return float(results.miou[kind][row, :row + 1].mean())


def _gate_shares(results: StreamResults) -> np.ndarray:
    """(T,) share of each task's images that went to its own expert."""
    images = np.nansum(results.gate_confusion, axis=1)
    return np.diagonal(results.gate_confusion) / np.where(
        images > 0, images, np.nan)


def _worst_expert(counts: np.ndarray, own: int,
                  names: Sequence[str]) -> List[str]:
    wrong = np.nan_to_num(counts)
    images = int(wrong.sum())
    wrong[own] = 0
    worst = int(wrong.argmax())
    text = f'{_short(names[worst])} ({int(wrong[worst])})'
    return [str(images) if images else '-', text if wrong.any() else '-']


def _alignments(columns: Sequence[Sequence[str]]) -> Optional[List[str]]:
    return ['right' if has_figures(cells) else 'left'
            for cells in columns] or None


def _escaped(text: str) -> str:
    return text.replace('|', '\\|')


def _width(table: str) -> int:
    return max(map(len, table.splitlines()))


def _number(value: float, decimals: int = 1) -> str:
    return '-' if math.isnan(value) else f'{value:.{decimals}f}'


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME else f'{name[:MAX_NAME - 3]}...'
