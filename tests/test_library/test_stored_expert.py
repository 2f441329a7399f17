# SPDX-License-Identifier: Apache-2.0
"""An expert in a folder: what is read, when, and what is refused."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch

LAZY = {
    'adapter': 'adapter_model.safetensors',
    'head': 'head.safetensors',
    'norm': 'norm.safetensors'
}
lazily = pytest.mark.parametrize('part, file', LAZY.items())


@pytest.fixture
def files_read(monkeypatch):
    """Names of the files that are read from here on."""
    names = []
    for method in ('read_bytes', 'read_text', 'open'):
        plain = getattr(Path, method)
        monkeypatch.setattr(
            Path,
            method,
            lambda self, *a, _plain=plain, **k:
            (names.append(self.name), _plain(self, *a, **k))[1])
    return names


def damage(path):
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_opening_reads_the_record_only(store, files_read):
    store.open(['day'])
    assert set(files_read) == {'library.json', 'expert.json'}


@lazily
def test_each_part_is_read_by_itself(store, files_read, part, file):
    expert, = store.open(['day'])
    del files_read[:]
    expert.parts[part]
    assert set(files_read) == {file}


def test_parts_equal_those_of_the_whole_expert(store):
    whole, stored = store.load('day'), store.open(['day'])[0]
    for part in ('adapter', 'norm', 'head', 'prototypes'):
        theirs, mine = whole.parts[part], stored.parts[part]
        assert set(mine) == set(theirs)
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    for field in ('name', 'classes', 'palette', 'configs', 'base_fingerprint',
                  'provenance'):
        assert getattr(stored, field) == getattr(whole, field)


def test_expert_without_norms_has_none(store):
    assert 'norm' not in store.open(['night'])[0].parts


@lazily
def test_changed_file_is_refused_by_name_when_it_is_read(store, part, file):
    damage(store.root / 'day' / file)
    expert, = store.open(['day'])
    with pytest.raises(ValueError, match=f'day/{file} is missing or was'):
        expert.parts[part]


@lazily
def test_file_that_was_changed_since_the_opening_is_refused(store, part, file):
    expert, = store.open(['day'])
    expert.parts[part]
    damage(store.root / 'day' / file)
    with pytest.raises(ValueError, match=f'day/{file} is missing or was'):
        expert.parts[part]


def test_changed_record_is_refused_at_once(store):
    damage(store.root / 'day' / 'expert.json')
    with pytest.raises(ValueError, match='day/expert.json'):
        store.open(['day'])


@lazily
def test_missing_file_is_refused_at_once(store, part, file):
    (store.root / 'day' / file).unlink()
    with pytest.raises(ValueError, match=f'day/{file} is missing: restore'):
        store.open(['day'])


@pytest.mark.parametrize('file', [*LAZY.values(), 'adapter_config.json'])
def test_verification_checks_every_file(store, file):
    expert, = store.open(['day'])
    expert.verify()
    damage(store.root / 'day' / file)
    with pytest.raises(ValueError, match=f'day/{file} is missing or was'):
        expert.verify()


def test_values_are_counted_without_reading_them(store, files_read):
    expert, = store.open(['day'])
    del files_read[:]
    # r = 2: 2 x 3 and 4 x 2 for the layer, 2 x 27 and 4 x 2 for the kernel
    assert expert.num_values() == dict(
        adapter=6 + 8 + 54 + 8, head=8, norm=5, prototypes=4)
    assert files_read == []


def test_parts_that_are_not_there_count_nothing(store):
    assert 'norm' not in store.open(['night'])[0].num_values()
