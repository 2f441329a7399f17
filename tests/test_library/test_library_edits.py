# SPDX-License-Identifier: Apache-2.0
"""Experts come to a library, leave it, and change their names."""
from __future__ import annotations

import shutil

import pytest
import torch

from mmseg_mile.library.edits import (add_expert, leftovers, open_library,
                                      prune_library, remove_expert,
                                      rename_expert)
from mmseg_mile.library.expert_store import ExpertStore


def contents(folder):
    """Bytes of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob('*')) if path.is_file()
    }


def without(files, *names):
    """Files of no expert named, and not the index."""
    return {
        path: content
        for path, content in files.items()
        if path != 'library.json' and path.split('/')[0] not in names
    }


@pytest.fixture
def other(tmp_path, make):
    """A library of 'rain' over the same base, made elsewhere."""
    store = ExpertStore(tmp_path / 'other')
    store.save_base({'fc.weight': torch.randn(4, 3)},
                    make('x').base_fingerprint)
    store.save(make('rain'))
    return store


def test_work_dir_stands_for_its_library(store):
    assert open_library(store.root.parent).root == store.root


def test_folder_without_library_is_refused(tmp_path):
    with pytest.raises(ValueError, match='has no library.json'):
        open_library(tmp_path)


def test_removing_leaves_every_other_file_bit_identical(store):
    before = contents(store.root)
    remove_expert(store.root, 'day')
    after = contents(store.root)
    assert without(after) == without(before, 'day')
    assert store.names == ['night']
    store.load('night')


def test_unknown_expert_cannot_be_removed(store):
    before = contents(store.root)
    with pytest.raises(ValueError, match=r"no expert 'noon'; experts: \['day"):
        remove_expert(store.root, 'noon')
    assert contents(store.root) == before


def test_added_expert_has_the_files_of_its_origin(store, other):
    before = contents(store.root)
    add_expert(store.root, other.root, 'rain')
    after = contents(store.root)
    assert store.names == ['day', 'night', 'rain']
    assert without(after, 'rain') == without(before)
    assert contents(store.root / 'rain') == contents(other.root / 'rain')


def test_added_under_another_name_says_what_it_was_trained_as(store, other):
    add_expert(store.root, other.root, 'rain', 'paris')
    expert = store.load('paris')
    assert expert.name == 'paris'
    assert expert.provenance == dict(seed=1)
    assert torch.equal(expert.parts['prototypes']['centroids'],
                       other.load('rain').parts['prototypes']['centroids'])


def test_expert_of_another_base_is_refused_with_both_fingerprints(
        store, tmp_path, make):
    foreign = ExpertStore(tmp_path / 'foreign')
    foreign.save_base({}, 'c' * 64)
    foreign.save(make('rain', base_fingerprint='c' * 64))
    before = contents(store.root)
    with pytest.raises(ValueError, match='c{16}, library .* to b{16}'):
        add_expert(store.root, foreign.root, 'rain')
    assert contents(store.root) == before


def test_expert_of_another_gate_is_refused(store, other, make):
    wide = make(
        'rain',
        parts=dict(prototypes={'centroids': torch.zeros(1, 5).double()}))
    other.save(wide)
    with pytest.raises(ValueError, match='other gates or embedders'):
        add_expert(store.root, other.root, 'rain')


def test_changed_expert_is_not_added(store, other):
    (other.root / 'rain' / 'head.safetensors').write_bytes(b'')
    with pytest.raises(ValueError, match='rain/head.safetensors'):
        add_expert(store.root, other.root, 'rain')
    assert store.names == ['day', 'night']


def test_adding_begins_a_library(tmp_path, other):
    add_expert(tmp_path / 'new', other.root, 'rain')
    assert contents(tmp_path / 'new') == contents(other.root)


def test_name_that_is_taken_needs_force(store, other, make):
    other.save(make('night'))
    with pytest.raises(ValueError, match="has an expert 'night'.*--force"):
        add_expert(store.root, other.root, 'night')
    add_expert(store.root, other.root, 'night', force=True)
    assert contents(store.root / 'night') == contents(other.root / 'night')


def test_name_that_differs_in_case_only_is_refused(store, other):
    with pytest.raises(ValueError, match='the same name to some disks'):
        add_expert(store.root, other.root, 'rain', 'Night')


def test_renamed_expert_keeps_its_tensors_and_its_place(store):
    before = contents(store.root)
    rename_expert(store.root, 'day', 'noon')
    after = contents(store.root)
    assert store.names == ['noon', 'night']
    assert without(after, 'noon') == without(before, 'day')
    for path, content in without(before, 'night').items():
        if path.startswith('day/') and path != 'day/expert.json':
            assert after[path.replace('day', 'noon')] == content
    store.load('noon')


def test_renaming_back_restores_every_byte(store):
    before = contents(store.root)
    rename_expert(store.root, 'day', 'noon')
    rename_expert(store.root, 'noon', 'day')
    assert contents(store.root) == before


def test_renaming_over_another_expert_needs_force(store):
    with pytest.raises(ValueError, match="has an expert 'night'"):
        rename_expert(store.root, 'day', 'night')
    head = store.load('day').parts['head']['conv_seg.weight']
    rename_expert(store.root, 'day', 'night', force=True)
    assert store.names == ['night']
    assert torch.equal(
        store.load('night').parts['head']['conv_seg.weight'], head)


def test_case_of_a_name_can_be_changed(store):
    rename_expert(store.root, 'day', 'Day')
    assert store.names == ['Day', 'night']


@pytest.fixture
def littered(store):
    """A library with what killed writes leave, and a file of the user."""
    shutil.copytree(store.root / 'day', store.root / 'orphan')
    shutil.copytree(store.root / 'day', store.root / '.fog.new')
    shutil.copytree(store.root / 'day', store.root / '.night.old')
    (store.root / '.library.json.partial').write_bytes(b'{')
    (store.root / 'notes').mkdir()
    (store.root / 'notes' / 'mine.txt').write_text('keep')
    (store.root / 'README.md').write_text('keep')
    return store


def test_leftovers_are_found_and_nothing_else(littered):
    assert [path.name for path in leftovers(littered)
            ] == ['.fog.new', '.library.json.partial', '.night.old', 'orphan']


def test_dry_run_deletes_nothing(littered):
    before = contents(littered.root)
    assert len(prune_library(littered.root, dry_run=True)) == 4
    assert contents(littered.root) == before


def test_pruning_deletes_leftovers_only(littered):
    kept = {
        path: content
        for path, content in contents(littered.root).items()
        if path.split('/')[0] in ('library.json', 'base.safetensors', 'day',
                                  'night', 'notes', 'README.md')
    }
    prune_library(littered.root)
    assert contents(littered.root) == kept
    assert leftovers(littered) == []


def test_pruning_first_moves_an_expert_that_waits_in_its_new_folder(store):
    (store.root / 'day').rename(store.root / '.day.new')
    shutil.copytree(store.root / 'night', store.root / 'day')
    assert prune_library(store.root) == []
    assert store.load('day').name == 'day'


def test_broken_library_is_not_pruned(littered):
    (littered.root / 'night' / 'head.safetensors').write_bytes(b'')
    with pytest.raises(ValueError, match='night/head.safetensors'):
        prune_library(littered.root)
    assert (littered.root / '.night.old').exists()
