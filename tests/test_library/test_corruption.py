# SPDX-License-Identifier: Apache-2.0
"""200 ways to damage a library, each of which is refused by file name."""
from __future__ import annotations

import pickle
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmseg_mile.library.expert_store import ExpertStore
from mmseg_mile.library.files import read_json, write_json

BASE = 'b' * 64


class Intruder:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return (Path.mkdir, (self.folder, ))


@pytest.fixture
def libraries(tmp_path, make):
    """Two libraries over one base, of experts with equal shapes."""
    found = []
    for name in ('mine', 'other'):
        store = ExpertStore(tmp_path / name)
        store.save_base({'fc.weight': torch.randn(4, 3)}, BASE)
        for expert in ('day', 'night', 'fog'):
            store.save(make(expert, provenance=dict(of=name)))
        found.append(store.root)
    return found


def read_all(root):
    """Load everything that a library has."""
    store = ExpertStore(root)
    store.load_base()
    return [store.load(name) for name in store.names]


def some_file(rng, root, suffix=''):
    files = sorted(p for p in root.rglob('*' + suffix) if p.is_file())
    return rng.choice(files)


# Each does its damage and returns the files of which one must be named.


def truncate(rng, root, other):
    path = some_file(rng, root)
    content = path.read_bytes()
    path.write_bytes(content[:rng.randrange(len(content))])
    return [path]


def flip_a_bit(rng, root, other):
    path = some_file(rng, root)
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return [path]


def append(rng, root, other):
    path = some_file(rng, root)
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.randint(1, 9)))
    return [path]


def delete(rng, root, other):
    path = some_file(rng, root)
    path.unlink()
    return [path]


def swap_files(rng, root, other):
    names = rng.sample(['day', 'night', 'fog'], 2)
    file = rng.choice([
        'adapter_model.safetensors', 'head.safetensors', 'norm.safetensors',
        'prototypes.safetensors', 'expert.json'
    ])
    one, two = (root / name / file for name in names)
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    return [one, two]


def swap_folders(rng, root, other):
    one, two = (root / n for n in rng.sample(['day', 'night', 'fog'], 2))
    one.rename(root / 'x')
    two.rename(one)
    (root / 'x').rename(two)
    return [one / 'expert.json', two / 'expert.json']


def rename_a_folder(rng, root, other):
    path = root / rng.choice(['day', 'night', 'fog'])
    path.rename(root / 'x')
    return [path / 'expert.json']


def take_a_file_of_another_library(rng, root, other):
    path = some_file(rng, root, '.safetensors')
    shutil.copy(other / path.relative_to(root), path)
    return [path]


def take_a_folder_of_another_library(rng, root, other):
    path = root / rng.choice(['day', 'night', 'fog'])
    shutil.rmtree(path)
    shutil.copytree(other / path.name, path)
    return [path / 'expert.json']


def draw_other_values(rng, root, other):
    path = some_file(rng, root, '.safetensors')
    save_file(
        {
            key: value.clone() + 1
            for key, value in load_file(path).items()
        }, path)
    return [path]


def edit_json(rng, root, other):
    path = some_file(rng, root, '.json')
    text = path.read_text()
    digits = [i for i, letter in enumerate(text) if letter.isdigit()]
    place = rng.choice(digits)
    digit = str((int(text[place]) + rng.randint(1, 9)) % 10)
    path.write_text(text[:place] + digit + text[place + 1:])
    return [path]


def edit_a_record_and_its_checksum(rng, root, other):
    path = some_file(rng, root, 'expert.json')
    record = read_json(path)
    change = rng.choice([
        dict(classes=record['classes'][::-1]),
        dict(provenance=dict(seed=rng.random())),
        dict(configs=dict(record['configs'], head={})),
        dict(files={k: '0' * 64
                    for k in record['files']}),
        dict(schema=3),
    ])
    write_json(path, {**record, **change})
    return [path]


def put_a_pickle(rng, root, other):
    path = some_file(rng, root)
    path.write_bytes(pickle.dumps(Intruder(root.parent / 'code ran')))
    return [path]


DAMAGES = [
    truncate, flip_a_bit, append, delete, swap_files, swap_folders,
    rename_a_folder, take_a_file_of_another_library,
    take_a_folder_of_another_library, draw_other_values, edit_json,
    edit_a_record_and_its_checksum, put_a_pickle
]


def test_a_whole_library_is_read(libraries):
    assert len(read_all(libraries[0])) == 3


def test_200_of_200_damaged_libraries_are_refused(libraries, tmp_path):
    mine, other = libraries
    rng = random.Random(5)
    root, passed, unnamed = tmp_path / 'damaged', [], []
    for number in range(200):
        damage = DAMAGES[number % len(DAMAGES)]
        shutil.copytree(mine, root)
        files = damage(rng, root, other)
        what = f'{number} {damage.__name__} {files}'
        try:
            read_all(root)
            passed.append(what)
        except ValueError as error:
            if not any(str(file) in str(error) for file in files):
                unnamed.append(f'{what}: {error}')
        shutil.rmtree(root)
    assert not passed and not unnamed
    assert not (tmp_path / 'code ran').exists()
