# SPDX-License-Identifier: Apache-2.0
"""A leaderboard as one HTML page, and its charts as PNG files."""
from __future__ import annotations

from pathlib import Path
from typing import List

from mmseg_mile.evaluation.leaderboard import (INTRODUCTION, Leaderboard,
                                               tables_of, write_tables)
from mmseg_mile.evaluation.tables import has_figures
from mmseg_mile.files import PathLike, write_text
from .charts import leaderboard_chart
from .plots import save_figure
from .report import PageFigure, render


def leaderboard_page(leaderboard: Leaderboard) -> str:
    """The page as HTML: per stream a chart and tables, then what is left out.

    It holds no date and no path, so the same runs give the same bytes.
    """
    boards = leaderboard.comparisons
    streams = []
    for title, board in zip(leaderboard.titles, boards):
        tables = []
        for table in tables_of(board):
            cells = table.frame.to_numpy().tolist()
            words = [
                i for i, column in enumerate(zip(*cells))
                if not has_figures(column)
            ]
            tables.append((table, cells, words))
        chart = PageFigure.of(leaderboard_chart(board))
        streams.append((title, board, chart, tables))
    return render(
        'leaderboard.html',
        num_runs=sum(len(row.runs) for board in boards for row in board.rows),
        introduction=INTRODUCTION,
        streams=streams,
        left_out=leaderboard.left_out)


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
    page = folder / 'leaderboard.html'
    write_text(page, leaderboard_page(leaderboard))
    charts = [
        save_figure(
            leaderboard_chart(board), folder / f'leaderboard_{stem}.png')
        for board, stem in zip(leaderboard.comparisons, leaderboard.stems)
    ]
    return [page, *write_tables(leaderboard, folder), *charts]
