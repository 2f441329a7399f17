# SPDX-License-Identifier: Apache-2.0
"""A leaderboard as one HTML page, and its charts as PNG files."""
from __future__ import annotations

import re
from pathlib import Path
from typing import List

from mmseg_mile.evaluation.leaderboard import Leaderboard
from mmseg_mile.evaluation.leaderboard_tables import (INTRODUCTION, tables_of,
                                                      write_tables)
from mmseg_mile.files import PathLike, write_text
from .charts import leaderboard_chart
from .plots import save_figure
from .report import PageFigure, render


def leaderboard_page(leaderboard: Leaderboard) -> str:
    """The page as HTML: per stream a chart and tables, then what is left out.

    It holds no date and no path, so the same runs give the same bytes.
    """
    runs = sum(
        len(s.runs) for board in leaderboard.boards for s in board.standings)
    streams = [(title, board, PageFigure.of(leaderboard_chart(board)),
                tables_of(board))
               for title, board in zip(leaderboard.titles, leaderboard.boards)]
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
    charts: List[Path] = []
    for board, title in zip(leaderboard.boards, leaderboard.titles):
        stem = 'leaderboard_' + re.sub(r'[^\w.]+', '-', title)
        path, count = folder / f'{stem}.png', 1
        while path in charts:
            count += 1
            path = folder / f'{stem}-{count}.png'
        charts.append(save_figure(leaderboard_chart(board), path))
    return [page, *write_tables(leaderboard, folder), *charts]
