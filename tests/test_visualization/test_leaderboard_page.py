# SPDX-License-Identifier: Apache-2.0
"""The page of a leaderboard, and the files beside it."""
from __future__ import annotations

import re
import shutil

import pytest
from fabricated_runs import three_methods, write_run

from mmseg_mile.evaluation.leaderboard import read_leaderboard
from mmseg_mile.visualization.leaderboard_page import (leaderboard_page,
                                                       write_leaderboard)


@pytest.fixture
def root(tmp_path):
    return three_methods(tmp_path / 'runs')


def html(root):
    return leaderboard_page(read_leaderboard([root]))


def charts(root):
    """Names of the charts, and of all files."""
    paths = write_leaderboard(read_leaderboard([root]), root.parent / 'out')
    assert all(path.stat().st_size for path in paths)
    return [path.name for path in paths if path.suffix == '.png'], paths


def test_same_runs_give_the_same_files(root, tmp_path):
    write_leaderboard(read_leaderboard([root]), tmp_path / 'one')
    # copied in another place, in another order
    for run in reversed(sorted(root.iterdir())):
        shutil.copytree(run, tmp_path / 'moved' / run.name)
    write_leaderboard(read_leaderboard([tmp_path / 'moved']), tmp_path / 'two')
    one, two = ({
        path.name: path.read_bytes()
        for path in (tmp_path / name).iterdir()
    } for name in ('one', 'two'))
    assert one == two
    assert set(one) == {
        'leaderboard.html', 'leaderboard.md', 'leaderboard.csv', 'runs.csv',
        'leaderboard_street.png'
    }


def test_streams_have_charts_of_their_own(tmp_path):
    write_run(tmp_path / 'runs' / 'a')
    write_run(tmp_path / 'runs' / 'b', tasks=('night', 'day'))
    write_run(tmp_path / 'runs' / 'c', stream='a/b c')
    write_run(tmp_path / 'runs' / 'd', stream='a/b/c')
    names, paths = charts(tmp_path / 'runs')
    assert paths[0].name == 'leaderboard.html'
    assert names == [
        'leaderboard_a-b-c.png', 'leaderboard_a-b-c-2.png',
        'leaderboard_street-day-night.png', 'leaderboard_street-night-day.png'
    ]


def test_page_has_every_method_with_its_score_and_needs_no_network(root):
    write_run(root / 'again')
    text = html(root)
    for part in ('52.0 ± 2.8', 'one model per task', 'task label', '40.0 ± -',
                 'Not the same for all: seeds', 'with seed 0 once more',
                 '5 runs on 1 stream, 1 left out'):
        assert part in text
    addresses = re.findall(r'(?:src|href)="([^"]{0,40})', text)
    assert addresses
    assert all(a.startswith(('data:image/', '#')) for a in addresses)
    assert '<script' not in text


def test_names_are_escaped_and_missing_runs_told(tmp_path):
    assert 'No run is finished.' in html(tmp_path)
    write_run(tmp_path / 'run', '<b>bold</b>')
    text = html(tmp_path)
    assert '<b>bold' not in text
    assert '&lt;b&gt;bold&lt;/b&gt;' in text
