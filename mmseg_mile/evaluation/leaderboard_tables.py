# SPDX-License-Identifier: Apache-2.0
"""A leaderboard as rows of text, in Markdown and in CSV."""
from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

from prettytable import PrettyTable, TableStyle

from mmseg_mile.files import PathLike, write_text
from .continual_scores import Spread
from .leaderboard import Leaderboard, Standing, StreamBoard
from .score_columns import (COLUMNS, COSTS, MORE_SCORES, SCORES, Column, cell,
                            number)

INTRODUCTION = (
    'Mean ± sample standard deviation over the seeds ("-" for one seed), '
    'mIoU of the routed predictions. Rank by average among methods that get '
    'neither a task label nor old images; the others stand where their score '
    'puts them and say what they get.')

_Cells = Tuple[str, List[str]]


class TextTable(NamedTuple):
    """Cells as they are shown.

    Args:
        title (str): Of the table.
        headings (tuple[str]): Of its columns.
        rows (tuple[tuple[str]]): One per method.
        words (tuple[int]): Columns that hold no figures.
        meanings (tuple[str]): What columns mean, a sentence each.
    """
    title: str
    headings: Tuple[str, ...]
    rows: Tuple[Tuple[str, ...], ...]
    words: Tuple[int, ...]
    meanings: Tuple[str, ...]


def tables_of(board: StreamBoard) -> List[TextTable]:
    """Scores, the score of each task, more scores, and costs.

    Columns of which no method has a figure are left out, and so are the
    deviations where every method has one seed.
    """
    standings = board.standings
    spreads = any(len(s.seeds) > 1 for s in standings)
    method: _Cells = ('method', [s.method for s in standings])
    rank: _Cells = ('rank', [str(s.rank or '-') for s in standings])
    seeds: _Cells = ('seeds', [str(len(s.seeds)) for s in standings])
    gets: _Cells = ('gets', [s.help for s in standings])
    tasks: List[_Cells] = [(name, [
        _shown(s.tasks[index], Column(name, name, ''), spreads)
        for s in standings
    ]) for index, name in enumerate(board.tasks)]
    scores = _known(SCORES, standings)
    others = _known(MORE_SCORES, standings)
    costs = _known(COSTS, standings)
    shown = _cells(scores, standings, spreads)
    return [
        _table('Scores', [method, rank, *shown, seeds, gets], scores,
               (0, len(shown) + 3)),
        _table('mIoU of each task at the end, %', [method, *tasks]),
        _table('More scores', [method, *_cells(others, standings, spreads)],
               others),
        _table('Costs, mean over the seeds',
               [method, *_cells(costs, standings, False)], costs),
    ]


def markdown(leaderboard: Leaderboard) -> str:
    """The whole leaderboard as Markdown."""
    lines = ['# Leaderboard', '', INTRODUCTION, '']
    meanings: Dict[str, None] = {}
    for board, title in zip(leaderboard.boards, leaderboard.titles):
        lines += [f'## {title}', '']
        if title == board.stream:
            lines += [' → '.join(board.tasks), '']
        for table in tables_of(board):
            lines += [f'**{table.title}**', '', _markdown_table(table), '']
            meanings.update(dict.fromkeys(table.meanings))
        if board.notes:
            lines += ['**Notes**', '', *(f'- {n}' for n in board.notes), '']
    if not leaderboard.boards:
        lines += ['No run is finished.', '']
    if leaderboard.left_out:
        lines += ['## Left out', '']
        lines += [f'- `{run}`: {why}' for run, why in leaderboard.left_out]
        lines += ['']
    if meanings:
        lines += ['## Columns', '', *(f'- {m}' for m in meanings), '']
    return '\n'.join(lines)


def methods_csv(leaderboard: Leaderboard) -> str:
    """A line per method: mean and deviation, full precision."""
    lines = []
    for board in leaderboard.boards:
        for standing in board.standings:
            line = dict(
                _identity(board, standing),
                rank=standing.rank or '',
                seeds=' '.join(map(str, standing.seeds)))
            spreads: Dict[str, Spread] = {
                **standing.figures,
                **{
                    f'miou_{t}': s
                    for t, s in zip(board.tasks, standing.tasks)
                }
            }
            for key, value in spreads.items():
                line[f'{key}_mean'] = _plain(value.mean)
                line[f'{key}_sd'] = _plain(value.deviation)
            lines.append(line)
    return _csv(lines)


def runs_csv(leaderboard: Leaderboard) -> str:
    """A line per run, full precision."""
    lines = []
    for board in leaderboard.boards:
        for standing in board.standings:
            for run, figures in zip(standing.runs, standing.run_figures):
                line = dict(
                    _identity(board, standing),
                    seed=run.results.seed,
                    run=run.name)
                line.update({c.key: _plain(figures[c.key]) for c in COLUMNS})
                last = run.results.miou['routed'][-1]
                line.update({
                    f'miou_{task}': _plain(float(value))
                    for task, value in zip(board.tasks, last)
                })
                lines.append(line)
    return _csv(lines)


def write_tables(leaderboard: Leaderboard, folder: PathLike) -> List[Path]:
    """``leaderboard.md``, ``leaderboard.csv`` and ``runs.csv``."""
    texts = {
        'leaderboard.md': markdown(leaderboard),
        'leaderboard.csv': methods_csv(leaderboard),
        'runs.csv': runs_csv(leaderboard)
    }
    for name, text in texts.items():
        write_text(Path(folder) / name, text)
    return [Path(folder) / name for name in texts]


def _table(
    title: str,
    cells: Sequence[_Cells],
    columns: Sequence[Column] = (),
    words: Tuple[int, ...] = (0, )
) -> TextTable:
    headings, values = zip(*cells)
    return TextTable(title, headings, tuple(zip(*values)), words,
                     tuple(f'{c.heading}: {c.meaning}' for c in columns))


def _known(columns: Sequence[Column],
           standings: Sequence[Standing]) -> List[Column]:
    return [
        c for c in columns
        if not all(math.isnan(s.figures[c.key].mean) for s in standings)
    ]


def _cells(columns: Sequence[Column], standings: Sequence[Standing],
           spreads: bool) -> List[_Cells]:
    return [(c.heading,
             [_shown(s.figures[c.key], c, spreads) for s in standings])
            for c in columns]


def _shown(value: Spread, column: Column, spreads: bool) -> str:
    return cell(value, column) if spreads else number(value.mean, column)


def _markdown_table(table: TextTable) -> str:
    # prettytable wants different headings; a task may be called 'method'.
    names = [str(index) for index in range(len(table.headings))]
    shown = PrettyTable(names, align='r')
    shown.set_style(TableStyle.MARKDOWN)
    for index in table.words:
        shown.align[names[index]] = 'l'
    for row in (table.headings, *table.rows):
        shown.add_row([text.replace('|', '\\|') for text in row])
    lines = shown.get_string().splitlines()
    # the numbers give way to the first row
    return '\n'.join([lines[2], lines[1], *lines[3:]])


def _identity(board: StreamBoard, standing: Standing) -> Dict[str, Any]:
    return dict(
        stream=board.stream,
        tasks=' > '.join(board.tasks),
        method=standing.method,
        **standing.setting)


def _plain(value: float) -> str:
    return '' if math.isnan(value) else repr(value)


def _csv(lines: List[Dict[str, Any]]) -> str:
    # streams have other tasks, so each may bring columns of its own
    fields = list(dict.fromkeys(key for line in lines for key in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator='\n')
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
