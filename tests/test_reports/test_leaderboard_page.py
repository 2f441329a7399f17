# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from fabricated_runs import three_methods, write_run

from mmseg_mile.evaluation.leaderboard import read_leaderboard
from mmseg_mile.reports.leaderboard_page import (leaderboard_page,
                                                 write_leaderboard)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return three_methods(tmp_path / 'runs')


def html(root: Path) -> str:
    return leaderboard_page(read_leaderboard([root])).render()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_same_runs_give_the_same_bytes(root: Path, tmp_path: Path) -> None:
    write_leaderboard(read_leaderboard([root]), tmp_path / 'one')
    # copied in another place, in another order
    for run in reversed(sorted(root.iterdir())):
        shutil.copytree(run, tmp_path / 'moved' / run.name)
    write_leaderboard(read_leaderboard([tmp_path / 'moved']), tmp_path / 'two')
    assert files(tmp_path / 'one') == files(tmp_path / 'two')


def test_files_of_a_leaderboard(root: Path, tmp_path: Path) -> None:
    paths = write_leaderboard(read_leaderboard([root]), tmp_path / 'out')
    assert [path.name for path in paths] == [
        'leaderboard.html', 'leaderboard.md', 'leaderboard.csv', 'runs.csv',
        'leaderboard_street.png'
    ]
    assert all(path.stat().st_size for path in paths)


def test_streams_have_charts_of_their_own(tmp_path: Path) -> None:
    write_run(tmp_path / 'runs' / 'a')
    write_run(tmp_path / 'runs' / 'b', tasks=('night', 'day'))
    write_run(tmp_path / 'runs' / 'c', stream='a/b c')
    paths = write_leaderboard(
        read_leaderboard([tmp_path / 'runs']), tmp_path / 'out')
    assert [path.name for path in paths if path.suffix == '.png'] == [
        'leaderboard_a-b-c.png', 'leaderboard_street-day-night.png',
        'leaderboard_street-night-day.png'
    ]


def test_streams_whose_names_make_one_file_name(tmp_path: Path) -> None:
    write_run(tmp_path / 'runs' / 'a', stream='a b')
    write_run(tmp_path / 'runs' / 'b', stream='a/b')
    paths = write_leaderboard(
        read_leaderboard([tmp_path / 'runs']), tmp_path / 'out')
    assert [path.name for path in paths[-2:]] == [
        'leaderboard_a-b.png', 'leaderboard_a-b-2.png']  # yapf: disable


def test_page_needs_no_network(root: Path) -> None:
    addresses = re.findall(r'(?:src|href)="([^"]{0,40})', html(root))
    assert addresses
    assert all(a.startswith(('data:image/', '#')) for a in addresses)
    assert '<script' not in html(root)


def test_page_has_every_method_with_its_score(root: Path) -> None:
    text = html(root)
    for part in ('52.0 ± 2.8', 'one model per task', 'task label', '40.0 ± -',
                 'Not the same for all: seeds'):
        assert part in text


def test_page_says_what_was_left_out(root: Path) -> None:
    write_run(root / 'again')
    text = html(root)
    assert '5 runs on 1 stream, 1 left out' in text
    assert 'with seed 0 once more' in text


def test_names_are_escaped(tmp_path: Path) -> None:
    write_run(tmp_path / 'run', '<b>bold</b>')
    text = html(tmp_path)
    assert '<b>bold' not in text
    assert '&lt;b&gt;bold&lt;/b&gt;' in text


def test_page_without_runs_says_so(tmp_path: Path) -> None:
    assert 'No run is finished.' in html(tmp_path)
