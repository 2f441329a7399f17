# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear whole, or not at all."""
from __future__ import annotations

import contextlib
import errno
import json
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmseg_mile.files import (locked, new_folder, num_values, read_bytes,
                              read_json, read_tensors, sha256, write_bytes,
                              write_json, write_tensors, write_text)


def names(folder):
    return sorted(p.name for p in folder.rglob('*'))


# -- one file -----------------------------------------------------------------


def test_file_is_replaced_and_missing_folders_are_made(tmp_path):
    for content in ('old', 'dusk \u2713\n'):
        write_text(tmp_path / 'new' / 'a', content)
        assert (tmp_path / 'new' / 'a').read_bytes() == content.encode()
    assert names(tmp_path) == ['a', 'new']


def test_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    steps = []
    for name in ('fsync', 'replace'):
        plain = getattr(os, name)
        monkeypatch.setattr(
            os,
            name,
            lambda *a, _name=name, _plain=plain:
            (steps.append(_name), _plain(*a)))
    write_bytes(tmp_path / 'a', b'new')
    assert steps == ['fsync', 'replace', 'fsync']


@pytest.mark.parametrize('step', ['fsync', 'replace'])
@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EIO])
def test_failing_write_names_file_and_room_and_leaves_the_old_file(
        tmp_path, monkeypatch, step, code):
    write_bytes(tmp_path / 'a', b'old')

    def fail(*args):
        raise OSError(code, 'the disk is full')

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError) as caught:
        write_bytes(tmp_path / 'a', bytes(321))
    assert caught.value.errno == code
    for words in (f'the disk is full: {tmp_path / "a"} cannot be written',
                  'needs 321 bytes, the disk has ', 'make room', '--resume'):
        assert words in str(caught.value)
    assert (tmp_path / 'a').read_bytes() == b'old'
    assert names(tmp_path) == ['a']


@pytest.mark.parametrize('change', ['unlink', 'write_bytes'])
@pytest.mark.parametrize('read', [read_bytes, read_json, read_tensors])
def test_changed_file_is_refused_by_name(tmp_path, change, read):
    path = tmp_path / 'x'
    write_bytes(path, b'{}')
    # the first test vector of FIPS 180-4 is that of b'abc'
    write_bytes(tmp_path / 'abc', b'abc')
    assert sha256(tmp_path / 'abc').startswith('ba7816bf8f01cfea')
    assert read_json(path, sha256(path)) == {}
    checksum = sha256(path)
    getattr(path, change)(*[b'[]'] if change == 'write_bytes' else [])
    with pytest.raises(ValueError, match='x is missing or was changed'):
        read(path, checksum)


# -- JSON ---------------------------------------------------------------------


def test_json_comes_back_with_nan_as_null(tmp_path):
    path, nan = tmp_path / 'a.json', float('nan')
    write_json(path, {'a': nan, 'b': ((1.5, nan), 'Z\u00fcrich'), 'c': {}})
    assert read_json(path) == {
        'a': None,
        'b': [[1.5, None], 'Zürich'],
        'c': {}
    }
    assert 'Zürich' in path.read_text()


def test_each_matrix_row_has_its_own_line(tmp_path):
    write_json(tmp_path / 'a.json', {
        'miou': [[1.5, None], [2.5, 3.5]],
        'names': ['a', 'b']
    })
    lines = (tmp_path / 'a.json').read_text().splitlines()
    assert lines == [
        '{', '  "miou": [', '    [1.5, null],', '    [2.5, 3.5]', '  ],',
        '  "names": ["a", "b"]', '}'
    ]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text('[]{}",\n\\ a\u00fc', max_size=8),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text('[]"\n ', max_size=3), inner, max_size=4),
    max_leaves=12)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(value=json_values)
def test_every_json_value_comes_back(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / 'x.json'
    write_json(path, value)
    assert read_json(path) == value


@pytest.mark.parametrize('value', [float('inf'), object(), '\udcff'])
def test_value_that_json_lacks_leaves_the_old_file(tmp_path, value):
    write_json(tmp_path / 'a.json', {'old': 1})
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / 'a.json', {'new': value})
    assert read_json(tmp_path / 'a.json') == {'old': 1}
    assert names(tmp_path) == ['a.json']


@pytest.mark.parametrize('content', [
    b'{"a": [1, 2', b'', b'{"a": NaN}', b'\xff\xfe{', b'[' * 100_000,
    b'{"a": ' + b'9' * 5000 + b'}'
])
def test_broken_json_is_refused_by_name(tmp_path, content):
    (tmp_path / 'broken.json').write_bytes(content)
    with pytest.raises(ValueError, match='broken.json is not valid JSON'):
        read_json(tmp_path / 'broken.json')


# -- tensors ------------------------------------------------------------------


def test_tensors_come_back_bit_for_bit_and_are_counted(tmp_path):
    shared = torch.randn(4, 4)
    tensors = dict(
        a=shared, b=shared.T, c=shared[1], scalar=torch.tensor(3),
        half=torch.randn(2).half(), double=torch.randn(2).double(),
        nothing=torch.zeros(0, 3),
        gradient=torch.randn(2, requires_grad=True))  # yapf: disable
    path = tmp_path / 'x.safetensors'
    write_tensors(path, tensors)
    again = read_tensors(path, sha256(path))
    assert set(again) == set(tensors)
    for key, value in tensors.items():
        assert again[key].dtype == value.dtype
        assert torch.equal(again[key], value)
    assert num_values(path) == 16 + 16 + 4 + 1 + 2 + 2 + 2


def test_no_tensors_are_no_trouble(tmp_path):
    write_tensors(tmp_path / 'x', {})
    assert read_tensors(tmp_path / 'x') == {}
    assert num_values(tmp_path / 'x') == 0


HEADERS = [
    dict(a=dict(dtype='F32', shape=[2], data_offsets=[0, 4])),
    dict(a=dict(dtype='F32', shape=[-1], data_offsets=[0, 4])),
    dict(a=dict(dtype='F32', shape=[2**40, 2**40], data_offsets=[0, 4])),
    dict(a=dict(dtype='X', shape=[1], data_offsets=[0, 4])),
    dict(a=dict(dtype='F32', shape=[1], data_offsets=[4, 0])),
    dict(a=7),
    [],
]


@pytest.mark.parametrize(
    'content',
    [b'', b'\x80\x04pickle', b'{}',
     bytes(8), b'\xff' * 20, *HEADERS],
    ids=str)
def test_broken_tensors_are_refused_by_name(tmp_path, content):
    if not isinstance(content, bytes):
        header = json.dumps(content).encode()
        content = len(header).to_bytes(8, 'little') + header + bytes(4)
    path = tmp_path / 'x.safetensors'
    path.write_bytes(content)
    with pytest.raises(ValueError, match='x.safetensors cannot be read'):
        read_tensors(path, sha256(path))
    with pytest.raises(ValueError, match='x.safetensors cannot be read'):
        num_values(path)


# -- folders ------------------------------------------------------------------


@pytest.fixture
def target(tmp_path):
    """A folder with an old file in it."""
    write_text(tmp_path / 'target' / 'a', 'old')
    return tmp_path / 'target'


def test_folder_appears_with_everything_in_it(tmp_path):
    with new_folder(tmp_path / 'deep' / 'new') as folder:
        (folder / 'a').write_text('new')
        assert not (tmp_path / 'deep' / 'new').exists()
    assert names(tmp_path / 'deep') == ['a', 'new']


def test_old_folder_is_replaced_as_a_whole(target):
    # what a killed process left does not get in
    write_text(target.parent / '.target.new' / 'left', 'over')
    write_text(target / 'b', 'gone')
    with new_folder(target) as folder:
        (folder / 'a').write_text('new')
    assert names(target.parent) == ['a', 'target']
    assert (target / 'a').read_text() == 'new'


def test_failed_block_leaves_the_old_folder(target):
    with pytest.raises(KeyboardInterrupt), new_folder(target) as folder:
        (folder / 'a').write_text('new')
        raise KeyboardInterrupt
    assert names(target.parent) == ['a', 'target']
    assert (target / 'a').read_text() == 'old'


# -- locks --------------------------------------------------------------------


def other_process(action):
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            action()
            os._exit(0)
        os._exit(1)
    return child


def test_second_writer_waits_for_the_first_or_is_refused(tmp_path):
    read, write = os.pipe()

    def second():
        with locked(tmp_path):
            os.write(write, b'second')

    with locked(tmp_path):
        child = other_process(second)
        with pytest.raises(
                ValueError, match=f'another process writes '
                f'{tmp_path}'), locked(
                    tmp_path, wait=False):
            pass
        os.write(write, b'first ')
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(read, 100) == b'first second'


def test_killed_or_failed_writer_gives_the_lock_back(tmp_path):

    def killed():
        with locked(tmp_path):
            os._exit(9)

    os.waitpid(other_process(killed), 0)
    with pytest.raises(KeyError), locked(tmp_path, wait=False):
        raise KeyError
    with locked(tmp_path, wait=False):
        pass
