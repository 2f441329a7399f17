# SPDX-License-Identifier: Apache-2.0
"""A leaderboard as one HTML page, and its charts as PNG files."""
from __future__ import annotations

import re
from pathlib import Path
from typing import List

from markupsafe import Markup

from mmseg_mile.evaluation.leaderboard import Leaderboard, StreamBoard
from mmseg_mile.evaluation.leaderboard_tables import (INTRODUCTION, TextTable,
                                                      tables_of, write_tables)
from mmseg_mile.files import PathLike
from mmseg_mile.visualization.figure_file import save_figure
from mmseg_mile.visualization.leaderboard_chart import leaderboard_chart
from .page import Page, bullets, figure, folded, paragraph, table


def leaderboard_page(leaderboard: Leaderboard) -> Page:
    """The page: per stream a chart and tables, then what was left out.

    It holds no date and no path, so the same runs give the same bytes.
    """
    streams = len(leaderboard.boards)
    runs = sum(
        len(standing.runs) for board in leaderboard.boards
        for standing in board.standings)
    page = Page(
        'Leaderboard', f'{_count(runs, "run")} on '
        f'{_count(streams, "stream")}, {len(leaderboard.left_out)} left out')
    for board, title in zip(leaderboard.boards, leaderboard.titles):
        order = ' → '.join(board.tasks) if title == board.stream else ''
        page.section(title, order, _stream(board))
    if not leaderboard.boards:
        page.section('Scores', 'No run is finished.')
    if leaderboard.left_out:
        page.section(
            'Left out', 'These runs are in no table and in no mean.',
            table(['run', 'why'],
                  [list(entry) for entry in leaderboard.left_out]))
    return page


def write_leaderboard(leaderboard: Leaderboard,
                      folder: PathLike) -> List[Path]:
    """Write tables, page and charts.

    Args:
        leaderboard (Leaderboard): What to write.
        folder (PathLike): Gets ``leaderboard.{html,md,csv}``, ``runs.csv``
            and a ``leaderboard_<stream>.png`` per stream.

    Returns:
        list[Path]: The files; the page first.
    """
    folder = Path(folder)
    page = leaderboard_page(leaderboard).save(folder / 'leaderboard.html')
    charts: List[Path] = []
    for board, title in zip(leaderboard.boards, leaderboard.titles):
        stem = 'leaderboard_' + re.sub(r'[^\w.]+', '-', title)
        path, count = folder / f'{stem}.png', 1
        while path in charts:
            count += 1
            path = folder / f'{stem}-{count}.png'
        charts.append(save_figure(leaderboard_chart(board), path))
    return [page, *write_tables(leaderboard, folder), *charts]


def _stream(board: StreamBoard) -> Markup:
    best = board.standings[0]
    parts = [
        figure(
            leaderboard_chart(board),
            alt=f'Average mIoU of {len(board.standings)} methods with their '
            f'spread; the highest is {best.method}',
            caption='Grey methods get a task label or old images. The line '
            'from the open to the filled dot is what later tasks changed.'),
        paragraph(INTRODUCTION)
    ]
    parts += [_html(entry) for entry in tables_of(board)]
    if board.notes:
        parts += [Markup('<h3>Notes</h3>'), bullets(board.notes)]
    return Markup('\n').join(parts)


def _html(entry: TextTable) -> Markup:
    shown = table(
        entry.headings,
        entry.rows,
        numeric=set(range(len(entry.headings))) - set(entry.words),
        caption=entry.title)
    if not entry.meanings:
        return shown
    return shown + folded('What the columns mean', bullets(entry.meanings))


def _count(number: int, what: str) -> str:
    return f'{number} {what}' + 's' * (number != 1)
