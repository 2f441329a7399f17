# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def page(run_tool: Callable, tmp_path: Path) -> Callable[..., str]:
    """``page(...)``: what the tool makes of a folder with these changes."""
    folder = tmp_path / 'results'
    folder.mkdir()
    texts = {
        'index.json': json.dumps(['intro', 'speed']),
        'intro.md': '# Results\n',
        'speed.md': '## Speed\n\n{{ fast }}\n\nBraces {0,1} stay.\n',
        'fast.csv': 'network,time\n"MiT-B0, all",0.44\nb,1.0\n'
    }

    def make(**changes: str) -> str:
        for name, text in {**texts, **changes}.items():
            (folder / name.replace('__', '.')).write_text(text)
        with pytest.raises(SystemExit) as ended:
            run_tool('results_tables.py', '--tables', folder, '--out',
                     tmp_path / 'page.md')
        assert ended.value.code == 0
        return (tmp_path / 'page.md').read_text()

    return make


def test_results_page_is_what_the_tables_make(run_tool: Callable) -> None:
    """RESULTS.md, see tools/results_tables.py."""
    with pytest.raises(SystemExit) as ended:
        run_tool('results_tables.py', '--check')
    assert ended.value.code == 0


def test_tables_stand_where_the_texts_name_them(page: Callable) -> None:
    assert page().split('\n\n', 1)[1] == ('# Results\n\n## Speed\n\n'
                                          '| network     |   time |\n'
                                          '|:------------|-------:|\n'
                                          '| MiT-B0, all |   0.44 |\n'
                                          '| b           |    1.0 |\n\n'
                                          'Braces {0,1} stay.\n')


@pytest.mark.parametrize('changes, message', [
    (dict(slow__csv='a\n1\n'), r"not shown are \['slow'\]"),
    (dict(intro__md='{{ old }}\n'), r"missing \['old'\]"),
    (dict(intro__md='{{ fast }}\n'), r"twice \['fast'\]"),
    (dict(more__md='## More\n'), r"not \['more'\]"),
])
def test_table_or_text_that_nobody_shows_is_named(page: Callable,
                                                  changes: dict,
                                                  message: str) -> None:
    with pytest.raises(ValueError, match=message):
        page(**changes)


def test_page_that_was_edited_is_told(run_tool: Callable, page: Callable,
                                      tmp_path: Path) -> None:
    page()
    path = tmp_path / 'page.md'
    path.write_text(path.read_text() + 'more\n')
    with pytest.raises(SystemExit) as ended:
        run_tool('results_tables.py', '--check', '--tables',
                 tmp_path / 'results', '--out', path)
    assert ended.value.code == 1
