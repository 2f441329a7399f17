# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole, and tell when they were changed."""
from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch

from mmseg_mile.experts.files import (new_folder, read_json, read_tensors,
                                      sha256, write_json, write_tensors)

KILLED = """
import os, signal
from pathlib import Path
import importlib.util
spec = importlib.util.spec_from_file_location('files', {file!r})
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
with files.new_folder(Path({target!r})) as folder:
    (folder / 'a').write_text('new')
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def target(tmp_path):
    """A folder with an old file in it."""
    folder = tmp_path / 'target'
    folder.mkdir()
    (folder / 'a').write_text('old')
    return folder


def test_digest_is_that_of_the_bytes(tmp_path):
    (tmp_path / 'a').write_bytes(b'abc')
    # the first test vector of FIPS 180-4
    assert sha256(tmp_path / 'a').startswith('ba7816bf8f01cfea')


def test_tensors_come_back_bit_for_bit(tmp_path):
    shared = torch.randn(4, 4)
    tensors = dict(
        a=shared, b=shared.T, c=shared[1], scalar=torch.tensor(3),
        half=torch.randn(2).half(), double=torch.randn(2).double(),
        gradient=torch.randn(2, requires_grad=True))  # yapf: disable
    write_tensors(tmp_path / 'x.safetensors', tensors)
    again = read_tensors(tmp_path / 'x.safetensors')
    assert set(again) == set(tensors)
    for key, value in tensors.items():
        assert again[key].dtype == value.dtype
        assert torch.equal(again[key], value)


def test_no_tensors_are_no_trouble(tmp_path):
    write_tensors(tmp_path / 'x.safetensors', {})
    assert read_tensors(tmp_path / 'x.safetensors') == {}


@pytest.mark.parametrize('content', [None, b'', b'\x80\x04pickle', b'{}'])
def test_broken_tensors_are_refused_by_name(tmp_path, content):
    path = tmp_path / 'x.safetensors'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match='x.safetensors cannot be read'):
        read_tensors(path)


def test_json_comes_back_without_its_checksum(tmp_path):
    content = {'a': [1, 2.5, None], 'b': {'Zürich': float('inf')}}
    write_json(tmp_path / 'x.json', content)
    assert read_json(tmp_path / 'x.json') == content
    assert 'checksum' not in content


def test_tuples_and_numbers_as_keys_do_not_upset_the_checksum(tmp_path):
    write_json(tmp_path / 'x.json', {'a': (1, (2, )), 'b': {10: 1, 9: 2}})
    assert read_json(tmp_path / 'x.json') == {
        'a': [1, [2]],
        'b': {
            '10': 1,
            '9': 2
        }
    }


def test_changed_json_is_refused_by_name(tmp_path):
    write_json(tmp_path / 'x.json', {'rank': 16})
    text = (tmp_path / 'x.json').read_text()
    (tmp_path / 'x.json').write_text(text.replace('16', '17'))
    with pytest.raises(ValueError, match='x.json was changed'):
        read_json(tmp_path / 'x.json')


@pytest.mark.parametrize('content', [None, b'', b'{"a": 1', b'\xff\xfe'])
def test_broken_json_is_refused_by_name(tmp_path, content):
    if content is not None:
        (tmp_path / 'x.json').write_bytes(content)
    with pytest.raises(ValueError, match='x.json cannot be read'):
        read_json(tmp_path / 'x.json')


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    write_json(tmp_path / 'x.json', {'a': 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / 'x.json', {'a': object()})
    assert read_json(tmp_path / 'x.json') == {'a': 1}


def test_folder_appears_with_everything_in_it(tmp_path):
    with new_folder(tmp_path / 'deep' / 'new') as folder:
        (folder / 'a').write_text('new')
        assert not (tmp_path / 'deep' / 'new').exists()
    assert (tmp_path / 'deep' / 'new' / 'a').read_text() == 'new'


def test_old_folder_is_replaced_as_a_whole(target):
    (target / 'b').write_text('gone')
    with new_folder(target) as folder:
        (folder / 'a').write_text('new')
    assert [p.name for p in target.parent.rglob('*')] == ['target', 'a']
    assert (target / 'a').read_text() == 'new'


def test_others_may_read_the_folder(tmp_path):
    with new_folder(tmp_path / 'new'):
        pass
    assert (tmp_path / 'new').stat().st_mode & 0o777 == 0o755


def test_failed_block_leaves_the_old_folder(target):
    with pytest.raises(KeyboardInterrupt), new_folder(target) as folder:
        (folder / 'a').write_text('new')
        raise KeyboardInterrupt
    assert [p.name for p in target.parent.rglob('*')] == ['target', 'a']
    assert (target / 'a').read_text() == 'old'


def test_failed_rename_brings_the_old_folder_back(target, monkeypatch):
    replace = os.replace

    def fail_once(source, goal):
        if goal == target and not str(source).endswith('-old'):
            raise OSError('disk full')
        replace(source, goal)

    monkeypatch.setattr(os, 'replace', fail_once)
    with pytest.raises(OSError, match='disk full'):
        with new_folder(target) as folder:
            (folder / 'a').write_text('new')
    assert [p.name for p in target.parent.rglob('*')] == ['target', 'a']
    assert (target / 'a').read_text() == 'old'


def test_killed_process_leaves_the_old_folder(target):
    file = sys.modules[new_folder.__module__].__file__
    code = KILLED.format(file=file, target=str(target))
    done = subprocess.run([sys.executable, '-c', code])
    assert done.returncode == -signal.SIGKILL
    assert (target / 'a').read_text() == 'old'
