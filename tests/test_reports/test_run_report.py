# SPDX-License-Identifier: Apache-2.0
import shutil

import pytest

from mmseg_mile.reports.run_report import PARTS, write_report

TITLES = [part.title for part in PARTS]


@pytest.fixture
def report(make_run, read_page):
    """``report(tasks, rows)`` is the page of an invented run."""
    return lambda *args, **kwargs: read_page(
        write_report(make_run(*args, **kwargs)).read_text(encoding='utf-8'))


def absent(parts) -> int:
    return sum(a.get('class') == 'absent' for _, a in parts.tags)


def test_report_lies_beside_the_results(make_run) -> None:
    folder = make_run()

    assert write_report(folder) == folder / 'report.html'


def test_report_can_lie_elsewhere(make_run, tmp_path) -> None:
    path = write_report(make_run(), tmp_path / 'new' / 'page.html')

    assert path.is_file()
    assert not (tmp_path / 'run' / 'report.html').exists()


def test_finished_run_has_every_section(report) -> None:
    parts = report()

    assert len(parts.texts) == len(PARTS)
    assert not absent(parts)
    # matrix, curves, classes, confusion, map; 2 x 2 x 3 and 2 x 4 pictures
    assert parts.count('img') == 5 + 12 + 8


def test_same_files_give_the_same_bytes_wherever_they_lie(make_run,
                                                          tmp_path) -> None:
    first = write_report(make_run()).read_bytes()
    shutil.copytree(tmp_path / 'run', tmp_path / 'elsewhere')

    assert write_report(tmp_path / 'elsewhere').read_bytes() == first


def test_names_do_not_become_html(make_run) -> None:
    html = write_report(make_run()).read_text(encoding='utf-8')

    assert 'MILE &lt;one&gt; on city &amp; land' in html
    assert '<b>sky' not in html and '<0>' not in html and '<one>' not in html


def test_method_without_experts_says_what_is_absent(report) -> None:
    parts = report(gate=False)

    assert absent(parts) == 4
    assert 'no experts to choose from' in parts.texts['gate']
    # matrix, curves, classes, and the predictions
    assert parts.count('img') == 3 + 12


@pytest.mark.parametrize('tasks, rows', [
    (('day', ), 1),
    (('day', 'night', 'rain'), 2),
    (tuple(f'task {i}' for i in range(13)), 13),
])
def test_streams_of_any_length_are_reported(report, tasks, rows) -> None:
    parts = report(tasks, rows)

    # one prototype alone makes no map
    assert absent(parts) == (1 if rows == 1 else 0)
    assert f'{rows} of {len(tasks)} task' in parts.texts['summary']


def test_run_without_a_row_has_a_page_too(report) -> None:
    parts = report(rows=0)

    assert not parts.count('img')
    assert 'No task is evaluated yet' in parts.texts['score-matrix']


def test_run_without_log_and_pictures_says_so(make_run, read_page) -> None:
    folder = make_run()
    for name in ('routing_log', 'pictures'):
        shutil.rmtree(folder / name)

    parts = read_page(write_report(folder).read_text(encoding='utf-8'))

    assert absent(parts) == 4
    assert 'no routing log' in parts.texts['routing-log']
    assert 'StreamPicturesHook' in parts.texts['predictions']


def test_old_report_survives_a_broken_file(make_run) -> None:
    folder = make_run()
    path = write_report(folder)
    before = path.read_bytes()
    (folder / 'results.json').write_text('{')

    with pytest.raises(ValueError, match='results.json'):
        write_report(folder)

    assert path.read_bytes() == before
