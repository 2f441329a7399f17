# SPDX-License-Identifier: Apache-2.0
"""A leaderboard as one HTML page, and its charts as PNG files."""
from __future__ import annotations

from pathlib import Path
from typing import List

from markupsafe import Markup

from mmseg_mile.evaluation.leaderboard import (INTRODUCTION, Comparison,
                                               Leaderboard, ShownTable,
                                               tables_of, write_tables)
from mmseg_mile.evaluation.tables import has_figures
from mmseg_mile.files import PathLike
from mmseg_mile.visualization.figure_file import save_figure
from mmseg_mile.visualization.leaderboard_chart import leaderboard_chart
from .page import Page, bullets, figure, folded, paragraph, table


def leaderboard_page(leaderboard: Leaderboard) -> Page:
    """The page: per stream a chart and tables, then what was left out.

    It holds no date and no path, so the same runs give the same bytes.
    """
    streams = len(leaderboard.comparisons)
    runs = sum(
        len(row.runs) for board in leaderboard.comparisons
        for row in board.rows)
    page = Page(
        'Leaderboard', f'{_count(runs, "run")} on '
        f'{_count(streams, "stream")}, {len(leaderboard.left_out)} left out')
    for board, title in zip(leaderboard.comparisons, leaderboard.titles):
        order = ' → '.join(board.tasks) if title == board.stream else ''
        page.section(title, order, _stream(board))
    if not leaderboard.comparisons:
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
    charts = [
        save_figure(
            leaderboard_chart(board), folder / f'leaderboard_{stem}.png')
        for board, stem in zip(leaderboard.comparisons, leaderboard.stems)
    ]
    return [page, *write_tables(leaderboard, folder), *charts]


def _stream(board: Comparison) -> Markup:
    best = board.rows[0]
    parts = [
        figure(
            leaderboard_chart(board),
            alt=f'Average mIoU of {len(board.rows)} methods with their '
            f'spread; the highest is {best.method}',
            caption='Grey methods get a task label or old images. The line '
            'from the open to the filled dot is what later tasks changed.'),
        paragraph(INTRODUCTION)
    ]
    parts += [_html(entry) for entry in tables_of(board)]
    if board.notes:
        parts += [Markup('<h3>Notes</h3>'), bullets(board.notes)]
    return Markup('\n').join(parts)


def _html(entry: ShownTable) -> Markup:
    cells = entry.frame.to_numpy().tolist()
    shown = table(
        list(entry.frame.columns),
        cells,
        numeric=[i for i, c in enumerate(zip(*cells)) if has_figures(c)],
        caption=entry.title)
    if not entry.meanings:
        return shown
    return shown + folded('Meaning of the columns', bullets(entry.meanings))


def _count(number: int, what: str) -> str:
    return f'{number} {what}' + 's' * (number != 1)
