# SPDX-License-Identifier: Apache-2.0
"""A leaderboard as one HTML page, and its charts as PNG files."""
from __future__ import annotations

from pathlib import Path
from typing import List

from mmseg_mile.evaluation.leaderboard import (INTRODUCTION, Leaderboard,
                                               ShownTable, tables_of,
                                               write_tables)
from mmseg_mile.evaluation.tables import has_figures
from mmseg_mile.files import PathLike, write_text
from .charts import leaderboard_chart
from .plots import save_figure
from .report import PageFigure, render


def leaderboard_page(leaderboard: Leaderboard) -> str:
    """The page as HTML: per stream a chart and tables, then what is left out.

    It holds no date and no path, so the same runs give the same bytes.
    """
    runs = sum(
        len(row.runs) for board in leaderboard.comparisons
        for row in board.rows)
    streams = [(title, board, PageFigure.of(leaderboard_chart(board)), [
        (entry, _words(entry)) for entry in tables_of(board)
    ]) for title, board in zip(leaderboard.titles, leaderboard.comparisons)]
    return render(
        'leaderboard.html',
        num_runs=runs,
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


def _words(entry: ShownTable) -> List[int]:
    """Columns of a table that hold words, which are set on the left."""
    columns = zip(*entry.frame.to_numpy().tolist())
    return [i for i, cells in enumerate(columns) if not has_figures(cells)]
