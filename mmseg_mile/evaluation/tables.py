# SPDX-License-Identifier: Apache-2.0
"""Results as text tables that fit a terminal of 100 columns."""
from __future__ import annotations

import math
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
from prettytable import PrettyTable

from . import continual_scores as formulas
from .results import StreamResults

WIDTH = 100
MAX_TASK_COLUMNS = 8
MAX_NAME = 20

# What each score means, in the order of the summary.
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


def score_table(results: StreamResults) -> str:
    """Score matrix, routed and oracle, with the mean of the seen tasks.

    Side by side where both fit, else one below the other; the oracle only
    where it was evaluated. More than ``MAX_TASK_COLUMNS`` tasks leave only
    the new task and the means.
    """
    if len(results.tasks) > MAX_TASK_COLUMNS:
        return _means_table(results)
    names = [_short(name) for name in results.tasks]
    kinds = _measured_kinds(results)
    tables = []
    # prettytable wants distinct headers; shortened names may be equal.
    if len({'after', 'mean', *names}) == len(names) + 2:
        tables = [_matrix_table(results, kind, names) for kind in kinds]
    if not tables or max(map(_width, tables)) > WIDTH:
        numbers = [str(i + 1) for i in range(len(names))]
        tables = [
            _matrix_table(results, kind, names, numbers) for kind in kinds
        ]
    if sum(map(_width, tables)) + 2 > WIDTH:
        return '\n'.join(table.get_string() for table in tables)
    return _side_by_side(tables)


def row_table(results: StreamResults, row: int) -> str:
    """One row of the score matrix: every task after learning task ``row``.

    The gate's accuracy per task is shown for the latest finished row, the
    one that its counts belong to.
    """
    latest = row == results.num_finished_rows - 1
    shares = _gate_shares(results) if latest else np.full(
        len(results.tasks), np.nan)
    table = PrettyTable(
        ['task', 'state', 'routed mIoU', 'oracle mIoU', 'gate % right'],
        align='r')
    table.title = (f'mIoU in % after task {row + 1} of {len(results.tasks)}: '
                   f'{_short(results.tasks[row])}')
    table.align['task'] = table.align['state'] = 'l'
    for index, name in enumerate(results.tasks):
        state = 'new' if index == row else (
            'seen' if index < row else 'unseen')
        cells = [results.miou[kind][row, index] for kind in results.miou]
        table.add_row([
            _short(name), state, *map(_number, cells),
            _number(100 * shares[index], 2)
        ])
    table.add_divider()
    means = [_seen_mean(results, kind, row) for kind in results.miou]
    table.add_row(['mean of seen', '', *map(_number, means), ''])
    return table.get_string()


def confusion_table(results: StreamResults) -> str:
    """Images per true task (rows) and chosen expert (columns).

    More than ``MAX_TASK_COLUMNS`` tasks leave the accuracy and the most
    frequent wrong expert.
    """
    if not results.has_gate:
        return 'Gate: not measured.'
    counts, names = results.gate_confusion, results.tasks
    many = len(names) > MAX_TASK_COLUMNS
    numbers = [f'{i + 1}' for i in range(len(names))]
    columns = (['images', 'most frequent wrong expert'] if many else numbers)
    table = PrettyTable(['true task', *columns, '% right'], align='r')
    table.title = ('Gate: images per chosen expert, '
                   f'{_number(100 * results.gate_accuracy, 2)} % right')
    table.align['true task'] = 'l'
    for index, share in enumerate(_gate_shares(results)):
        cells = (
            _worst_expert(counts[index], index, names)
            if many else [_number(count, 0) for count in counts[index]])
        table.add_row([
            f'{index + 1} {_short(names[index])}', *cells,
            _number(100 * share, 2)
        ])
    return table.get_string()


def cost_table(results: StreamResults) -> str:
    """Values and bytes that each task added, and its training time.

    'KiB' is the room of the expert on disk, 'kept' counts all the values
    that have to be kept after the task.
    """
    table = PrettyTable([
        'expert', 'LoRA', 'head', 'norm', 'prototypes', '% of base', 'KiB',
        'kept', 'train s'
    ],
                        align='r')
    base = results.cost.base_params
    size = '-' if base is None else f'{base:,}'
    macs = results.cost.macs
    table.title = f'Parameters per task (base: {size})' + (
        '' if macs is None else f', {macs / 1e9:.2f} GMACs an image')
    table.align['expert'] = 'l'
    experts = {entry['task']: entry for entry in results.cost.experts}
    for name, seconds, kept in zip(results.tasks, results.cost.train_seconds,
                                   results.cost.kept_params):
        entry = experts.get(name)
        cells: List[str] = ['-'] * 6
        if entry:
            kinds = ('lora_params', 'head_params', 'norm_params')
            added = sum(entry[kind] for kind in kinds)
            cells = [
                f'{entry[kind]:,}' for kind in (*kinds, 'prototype_values')
            ]
            cells += [
                _number(100 * added / base, 2) if base else '-',
                f'{entry["bytes"] / 1024:,.0f}'
            ]
        values = '-' if math.isnan(kept) else f'{kept / 1e6:.2f} M'
        table.add_row([_short(name), *cells, values, _number(seconds)])
    return table.get_string()


def summary_values(results: StreamResults) -> Dict[str, float]:
    """The value of every score that ``SCORE_MEANINGS`` explains."""
    size = results.num_finished_rows
    oracle = results.miou['oracle'][:size, :size]
    values = dict(
        results.scores,
        gate_accuracy=100 * results.gate_accuracy,
        backward_transfer_oracle=formulas.backward_transfer(oracle)
        if size else math.nan)
    return {name: values[name] for name in SCORE_MEANINGS}


def score_title(name: str) -> str:
    """A score's name as it is shown."""
    return name.replace('_', ' ').replace('miou', 'mIoU')


def score_decimals(name: str) -> int:
    """Decimals that a score is shown with."""
    return 3 if name == 'stability' else 2


def summary_table(results: StreamResults) -> str:
    """Every score of the run on a line of its own, with its meaning."""
    size = results.num_finished_rows
    values = summary_values(results)
    table = PrettyTable(['score', 'value', 'meaning'], align='l')
    table.align['value'] = 'r'
    table.title = (f'{_short(results.method)} on {_short(results.stream)}, '
                   f'{size} of {len(results.tasks)} tasks, '
                   f'seed {results.seed}')
    for name, meaning in SCORE_MEANINGS.items():
        table.add_row([
            score_title(name),
            _number(values[name], score_decimals(name)), meaning
        ])
    return table.get_string()


def _matrix_table(results: StreamResults,
                  kind: str,
                  names: Sequence[str],
                  columns: Optional[Sequence[str]] = None) -> PrettyTable:
    numbered = columns is not None
    table = PrettyTable(['after', *(columns or names), 'mean'], align='r')
    table.title = f'{kind} mIoU in %, mean of seen tasks'
    table.align['after'] = 'l'
    for row, name in enumerate(names):
        table.add_row([
            f'{row + 1} {name}' if numbered else name,
            *map(_number, results.miou[kind][row]),
            _number(_seen_mean(results, kind, row))
        ])
    return table


def _means_table(results: StreamResults) -> str:
    kinds = _measured_kinds(results)
    table = PrettyTable([
        'after', *(f'{kind}: {what}' for kind in kinds
                   for what in ('new task', 'mean'))
    ],
                        align='r')
    table.title = 'mIoU in %, mean of seen tasks'
    table.align['after'] = 'l'
    for row, name in enumerate(results.tasks):
        cells = [
            value for kind in kinds
            for value in (results.miou[kind][row, row],
                          _seen_mean(results, kind, row))
        ]
        table.add_row([f'{row + 1} {_short(name)}', *map(_number, cells)])
    return table.get_string()


def _measured_kinds(results: StreamResults) -> List[str]:
    return [
        kind for kind, matrix in results.miou.items()
        if kind == 'routed' or not np.isnan(matrix).all()
    ]


def _seen_mean(results: StreamResults, kind: str, row: int) -> float:
    return float(results.miou[kind][row, :row + 1].mean())


def _gate_shares(results: StreamResults) -> np.ndarray:
    """(T,) share of each task's images that went to its own expert."""
    images = np.nansum(results.gate_confusion, axis=1)
    return np.diagonal(results.gate_confusion) / np.where(
        images > 0, images, np.nan)


def _worst_expert(counts: np.ndarray, own: int,
                  names: Sequence[str]) -> List[Any]:
    wrong = np.nan_to_num(counts)
    images = wrong.sum()
    wrong[own] = 0
    worst = int(wrong.argmax())
    text = f'{_short(names[worst])} ({int(wrong[worst])})'
    return [int(images) if images else '-', text if wrong.any() else '-']


def _side_by_side(tables: Sequence[PrettyTable]) -> str:
    lines = [table.get_string().splitlines() for table in tables]
    return '\n'.join('  '.join(parts) for parts in zip(*lines))


def _width(table: PrettyTable) -> int:
    return len(table.get_string().splitlines()[0])


def _number(value: float, decimals: int = 1) -> str:
    return '-' if math.isnan(value) else f'{value:.{decimals}f}'


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME else f'{name[:MAX_NAME - 3]}...'


#: What is printed at the end of a run.
CLOSING_TABLES = (score_table, confusion_table, cost_table, summary_table)


def cross_expert_table(tasks: Sequence[str], matrix: np.ndarray) -> str:
    """mIoU with one expert forced on all images of a task.

    Args:
        tasks (Sequence[str]): T names.
        matrix (np.ndarray): (T, T) per cent, rows tasks, columns experts.

    Returns:
        str: A table; the diagonal holds the oracle's scores.
    """
    experts = [f'expert {task}' for task in tasks]
    table = PrettyTable(['mIoU of task', *experts, 'drop'])
    table.align = 'r'
    table.align['mIoU of task'] = 'l'
    for index, task in enumerate(tasks):
        others = np.delete(matrix[index], index)
        drop = matrix[index, index] - np.nanmean(others)
        cells = [f'{value:.1f}' for value in (*matrix[index], drop)]
        table.add_row([task, *cells])
    return f'Experts forced on other tasks\n{table}'
