# SPDX-License-Identifier: Apache-2.0
"""Contents that come back as they were, and tell when they were changed."""
from __future__ import annotations

import hashlib
import json

import pytest
import torch

from mmseg_mile.library.files import (check_sum, num_values, read_json,
                                      read_tensors, sha256, write_json,
                                      write_tensors)


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
    path = tmp_path / 'x.safetensors'
    again = read_tensors(path, sha256(path))
    assert set(again) == set(tensors)
    for key, value in tensors.items():
        assert again[key].dtype == value.dtype
        assert torch.equal(again[key], value)


def test_no_tensors_are_no_trouble(tmp_path):
    path = tmp_path / 'x.safetensors'
    write_tensors(path, {})
    assert read_tensors(path, sha256(path)) == {} and num_values(path) == 0


@pytest.mark.parametrize('content', [b'', b'\x80\x04pickle', b'{}'])
def test_broken_tensors_are_refused_by_name(tmp_path, content):
    path = tmp_path / 'x.safetensors'
    path.write_bytes(content)
    with pytest.raises(ValueError, match='x.safetensors cannot be read'):
        read_tensors(path, sha256(path))


@pytest.mark.parametrize('change', ['', 'unlink', 'write_bytes'])
@pytest.mark.parametrize('read', [read_tensors, check_sum])
def test_changed_tensors_are_refused_by_name(tmp_path, change, read):
    path = tmp_path / 'x.safetensors'
    write_tensors(path, {'a': torch.zeros(3)})
    checksum = sha256(path)
    if not change:
        read(path, checksum)
        return
    getattr(path, change)(*[b'other'] if change == 'write_bytes' else [])
    with pytest.raises(ValueError, match='x.safetensors is missing or was'):
        read(path, checksum)


def test_values_of_all_tensors_are_counted(tmp_path):
    path = tmp_path / 'x.safetensors'
    write_tensors(path, dict(a=torch.zeros(3, 4), b=torch.tensor(1)))
    assert num_values(path) == 13


@pytest.mark.parametrize('content', [None, b'', bytes(8), b'\xff' * 20])
def test_values_of_a_broken_file_are_not_counted(tmp_path, content):
    path = tmp_path / 'x.safetensors'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match='x.safetensors cannot be read'):
        num_values(path)


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
    with pytest.raises(ValueError, match='x.json is missing or was changed'):
        read_json(tmp_path / 'x.json')


@pytest.mark.parametrize('content', [
    None, b'', b'{"a": 1', b'\xff\xfe', b'[1, 2]', b'7', b'[' * 100_000,
    b'{"a": ' + b'9' * 5000 + b'}', b'{"a": "\\ud800"}'
])
def test_broken_json_is_refused_by_name(tmp_path, content):
    if content is not None:
        (tmp_path / 'x.json').write_bytes(content)
    with pytest.raises(ValueError, match='x.json cannot be read'):
        read_json(tmp_path / 'x.json')


@pytest.mark.parametrize('change', [
    lambda text: text[:-1],
    lambda text: text + '\n',
    lambda text: text.replace(' "a"', '  "a"'),
    lambda text: text.replace(' "a"', ' "a": 2, "a"'),
], ids=['cut', 'longer', 'space', 'twice'])  # yapf: disable
def test_not_a_byte_of_json_may_differ(tmp_path, change):
    path = tmp_path / 'x.json'
    write_json(path, {'a': 1})
    changed = change(path.read_text())
    assert json.loads(changed) == json.loads(path.read_text())
    path.write_text(changed)
    with pytest.raises(ValueError, match='x.json is missing or was changed'):
        read_json(path)


def test_json_without_a_checksum_is_refused(tmp_path):
    (tmp_path / 'x.json').write_text('{\n "a": 1\n}\n')
    with pytest.raises(ValueError, match='x.json is missing or was changed'):
        read_json(tmp_path / 'x.json')


def test_json_of_another_library_is_refused_by_its_digest(tmp_path):
    path = tmp_path / 'x.json'
    write_json(path, {'a': 1})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_json(path, digest) == {'a': 1}
    write_json(path, {'a': 2})
    with pytest.raises(ValueError, match='x.json is missing or was changed'):
        read_json(path, digest)


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    write_json(tmp_path / 'x.json', {'a': 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / 'x.json', {'a': object()})
    assert read_json(tmp_path / 'x.json') == {'a': 1}
