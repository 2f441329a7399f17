# SPDX-License-Identifier: Apache-2.0
import errno
import json
import os
from pathlib import Path

import pytest

from mmseg_mile.files import format_json, read_json, write_json, write_text


def test_written_value_is_read_back(tmp_path: Path) -> None:
    value = {'name': 'dusk \u2713', 'rows': [[1.5, None], [2, 3]], 'no': {}}

    write_json(tmp_path / 'new' / 'a.json', value)

    assert read_json(tmp_path / 'new' / 'a.json') == value


def test_each_matrix_row_has_its_own_line() -> None:
    lines = format_json({'miou': [[1.5, None], [2.5, 3.5]]}).splitlines()

    assert lines[2].strip() == '[1.5, null],'
    assert lines[3].strip() == '[2.5, 3.5]'


def test_format_is_json_for_empty_containers() -> None:
    value = {'a': [], 'b': {}, 'c': [[], {}]}

    assert json.loads(format_json(value)) == value


def test_nan_becomes_null(tmp_path: Path) -> None:
    nan = float('nan')
    write_json(tmp_path / 'a.json', {'a': nan, 'b': [[1.5, nan]]})

    assert read_json(tmp_path / 'a.json') == {'a': None, 'b': [[1.5, None]]}


def test_value_that_json_lacks_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / 'a.json'
    write_json(path, {'old': 1})

    with pytest.raises(ValueError):
        write_json(path, {'new': float('inf')})

    assert read_json(path) == {'old': 1}


def test_text_is_written_as_it_is(tmp_path: Path) -> None:
    write_text(tmp_path / 'new' / 'a.txt', 'dusk \u2713\n')

    assert (tmp_path / 'new' / 'a.txt').read_bytes() == 'dusk ✓\n'.encode()
    assert [p.name for p in (tmp_path / 'new').iterdir()] == ['a.txt']


def test_text_that_cannot_be_encoded_leaves_the_old_file(
        tmp_path: Path) -> None:
    write_text(tmp_path / 'a.txt', 'old')

    with pytest.raises(ValueError):
        write_text(tmp_path / 'a.txt', 'new \udcff')

    assert (tmp_path / 'a.txt').read_text() == 'old'
    assert [p.name for p in tmp_path.iterdir()] == ['a.txt']


@pytest.mark.parametrize('step', ['fsync', 'replace'])
def test_failing_write_leaves_the_old_file_alone(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / 'a.json'
    write_json(path, {'old': 1})

    def fail(*args: object) -> None:
        raise OSError('no space left on device')

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match='no space'):
        write_json(path, {'new': 2})

    assert read_json(path) == {'old': 1}
    assert [p.name for p in tmp_path.iterdir()] == ['a.json']


@pytest.mark.parametrize('content',
                         [b'{"a": [1, 2', b'', b'{"a": NaN}', b'\xff\xfe{'])
def test_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / 'broken.json'
    path.write_bytes(content)

    with pytest.raises(ValueError, match='broken.json is not valid JSON'):
        read_json(path)


def test_nesting_without_end_is_named(tmp_path: Path) -> None:
    (tmp_path / 'a.json').write_text('[' * 100_000)

    with pytest.raises(ValueError, match='a.json is not valid JSON'):
        read_json(tmp_path / 'a.json')


def test_full_disk_is_told_with_the_room_that_is_needed(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'a.json'
    write_json(path, 1)

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(OSError, match='a.json cannot be written. It needs 2'):
        write_json(path, 2)
    assert read_json(path) == 1
    assert [p.name for p in tmp_path.iterdir()] == ['a.json']
