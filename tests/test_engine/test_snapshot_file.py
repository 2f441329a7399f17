# SPDX-License-Identifier: Apache-2.0
"""A state in a file that is whole or refused."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.engine import snapshot as snapshot_file
from mmseg_mile.engine.snapshot import read_snapshot, write_snapshot

STATE = dict(iteration=4, weights=dict(a=torch.arange(6.).view(2, 3)))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / 'task' / 'snapshot.safetensors'
    write_snapshot(path, STATE)
    return path


def test_state_comes_back(path):
    state = read_snapshot(path)
    assert state['iteration'] == 4
    assert torch.equal(state['weights']['a'], STATE['weights']['a'])


def test_layout_in_memory_does_not_matter(path):
    value = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    write_snapshot(path, dict(value=value, column=value[:, 0]))
    state = read_snapshot(path)
    assert torch.equal(state['value'], value)
    assert torch.equal(state['column'], value[:, 0])


def test_write_that_fails_leaves_the_old_state(path, monkeypatch):

    def no_room(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('os.fsync', no_room)
    with pytest.raises(OSError, match='snapshot.safetensors'):
        write_snapshot(path, dict(iteration=5))
    assert read_snapshot(path)['iteration'] == 4


def test_half_written_file_beside_it_is_ignored(path):
    path.with_name(f'.{path.name}.partial').write_bytes(b'half')
    assert read_snapshot(path)['iteration'] == 4
    write_snapshot(path, dict(iteration=5))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize('where', [3, 60, -1])
def test_flipped_bit_is_refused(path, where):
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match='snapshot.safetensors cannot be res'):
        read_snapshot(path)


@pytest.mark.parametrize('length', [0, 4, 100, -1])
def test_truncated_file_is_refused(path, length):
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match='remove it, and its task is trained'):
        read_snapshot(path)


def test_other_version_is_refused(path, monkeypatch):
    monkeypatch.setattr(snapshot_file, '_SCHEMA', 2)
    with pytest.raises(ValueError, match='schema 1'):
        read_snapshot(path)
