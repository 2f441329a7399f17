# SPDX-License-Identifier: Apache-2.0
"""Experts come to a library, leave it, change their names, are looked at."""
from __future__ import annotations

import dataclasses
import shutil
from functools import partial

import pytest
import torch

from mmseg_mile.gates.prototype_gate import PrototypeGate
from mmseg_mile.library.edits import (add_expert, list_experts, merge_experts,
                                      remove_expert, rename_expert,
                                      show_expert, verify_library)
from mmseg_mile.library.expert_store import (ExpertStore, open_library,
                                             write_expert)


def contents(folder):
    """Bytes of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file() and path.name != '.lock'
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


def test_work_dir_stands_for_its_library(store, tmp_path):
    assert open_library(store.root.parent).root == store.root
    with pytest.raises(ValueError, match='has no library.json'):
        open_library(tmp_path / 'nowhere')


# -- removing, adding, renaming -----------------------------------------------


def test_removing_leaves_every_other_file_bit_identical(store):
    before = contents(store.root)
    remove_expert(store.root, 'day')
    assert without(contents(store.root)) == without(before, 'day')
    assert store.names == ['night']
    store.load('night')


def test_added_expert_has_the_files_of_its_origin(store, other):
    before = contents(store.root)
    add_expert(store.root, other.root, 'rain')
    assert store.names == ['day', 'night', 'rain']
    assert without(contents(store.root), 'rain') == without(before)
    assert contents(store.root / 'rain') == contents(other.root / 'rain')


def test_expert_is_added_under_another_name(store, other):
    add_expert(store.root, other.root, 'rain', 'paris')
    mine, theirs = store.load('paris'), other.load('rain')
    assert mine.name == 'paris' and mine.provenance == theirs.provenance
    assert torch.equal(mine.parts['prototypes']['centroids'],
                       theirs.parts['prototypes']['centroids'])


def test_adding_begins_a_library(tmp_path, other):
    add_expert(tmp_path / 'new', other.root, 'rain')
    assert contents(tmp_path / 'new') == contents(other.root)


def test_renamed_expert_keeps_its_tensors_and_its_place(store):
    before = contents(store.root)
    rename_expert(store.root, 'day', 'noon')
    after = contents(store.root)
    assert store.names == ['noon', 'night']
    assert without(after, 'noon') == without(before, 'day')
    for path, content in without(before, 'night').items():
        if path.startswith('day/') and path != 'day/expert.json':
            assert after[path.replace('day', 'noon')] == content
    rename_expert(store.root, 'noon', 'day')
    assert contents(store.root) == before
    # to some disks, both are one folder
    rename_expert(store.root, 'day', 'Day')
    assert store.names == ['Day', 'night']


def test_name_that_is_taken_needs_force(store, other, make):
    other.save(make('night'))
    with pytest.raises(ValueError, match="has an expert 'night'.*--force"):
        add_expert(store.root, other.root, 'night')
    add_expert(store.root, other.root, 'night', force=True)
    assert contents(store.root / 'night') == contents(other.root / 'night')
    with pytest.raises(ValueError, match="has an expert 'night'"):
        rename_expert(store.root, 'day', 'night')
    head = store.load('day').parts['head']['conv_seg.weight']
    rename_expert(store.root, 'day', 'night', force=True)
    assert store.names == ['night']
    assert torch.equal(
        store.load('night').parts['head']['conv_seg.weight'], head)


def of_another_base(other, make):
    shutil.rmtree(other.root)
    other.save_base({}, 'c' * 64)
    other.save(make('rain', base_fingerprint='c' * 64))


def of_another_gate(other, make):
    wide = {'centroids': torch.zeros(1, 5).double()}
    other.save(make('rain', parts=dict(prototypes=wide)))


def cut_off(other, make):
    (other.root / 'rain' / 'head.safetensors').write_bytes(b'')


@pytest.mark.parametrize('act, new, message', [
    (of_another_base, None, 'c{16}, library .* to b{16}'),
    (of_another_gate, None, 'other gates or embedders'),
    (cut_off, None, 'rain/head.safetensors'),
    (None, 'Night', 'the same name to some disks'),
    (None, '../rain', 'task name must start with'),
])  # yapf: disable
def test_expert_that_cannot_be_added_changes_nothing(store, other, make, act,
                                                     new, message):
    if act is not None:
        act(other, make)
    before = contents(store.root)
    with pytest.raises(ValueError, match=message):
        add_expert(store.root, other.root, 'rain', new)
    assert contents(store.root) == before


@pytest.mark.parametrize('act', [
    lambda root: remove_expert(root, 'noon'),
    lambda root: rename_expert(root, 'noon', 'x'),
    lambda root: rename_expert(root, 'day', 'day'),
    lambda root: show_expert(root, 'noon'),
])  # yapf: disable
def test_names_that_make_no_sense_are_refused(store, act):
    before = contents(store.root)
    with pytest.raises(ValueError, match='noon|has this name already'):
        act(store.root)
    assert contents(store.root) == before


# -- verifying ----------------------------------------------------------------


def test_whole_library_is_whole(library):
    assert verify_library(library.store.root) == []


@pytest.mark.parametrize('file', [
    'adapter_config.json', 'adapter_model.safetensors', 'head.safetensors',
    'norm.safetensors', 'prototypes.safetensors', 'expert.json'
])
@pytest.mark.parametrize('gone', [False, True])
def test_changed_or_missing_file_is_named(cnn, file, gone):
    path = cnn.store.root / 'night' / file
    if gone:
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    problem, = verify_library(cnn.store.root)
    assert str(path) in problem


def test_all_broken_files_are_named(cnn):
    for file in ('day/norm', 'fog/head', 'fog/norm', 'base'):
        (cnn.store.root / f'{file}.safetensors').write_bytes(b'')
    text = '\n'.join(verify_library(cnn.store.root))
    for file in ('day/norm', 'fog/head', 'fog/norm', 'base'):
        assert f'{file}.safetensors' in text


def test_base_that_is_not_the_one_of_its_fingerprint_is_found(cnn):
    state, fingerprint = cnn.store.load_base()
    state['stem.0.weight'] += 1
    cnn.store.save_base(state, fingerprint)
    problem, = verify_library(cnn.store.root)
    assert f'the library says {fingerprint[:16]}' in problem


def changed(cnn, parts=None, **changes):
    night = cnn.store.load('night')
    parts = dict(night.parts, **(parts or {}))
    expert = dataclasses.replace(night, parts=parts, **changes)
    # not by save(), which looks at the values
    cnn.store.place('night', partial(write_expert, expert))
    return '\n'.join(verify_library(cnn.store.root))


@pytest.mark.parametrize('part, key, value', [
    ('adapter', 'stem.0.lora_A.weight', torch.nan),
    ('norm', 'stem.1.running_var', torch.inf),
    ('head', 'conv_seg.weight', torch.inf),
    ('prototypes', 'centroids', torch.inf),
    ('prototypes', 'max_distance', torch.nan)
])  # yapf: disable
def test_values_that_are_not_finite_are_found(cnn, part, key, value):
    tensors = cnn.store.load('night').parts[part]
    tensors[key].fill_(value)
    text = changed(cnn, {part: tensors})
    assert 'night' in text
    assert f'{key!r} holds values that are not finite' in text


@pytest.mark.parametrize('part, key', [('adapter', 'fc.lora_A.weight'),
                                       ('head', 'conv_seg.weight')])
def test_expert_that_diverged_is_not_taken_up(store, other, make, part, key):
    parts = make('rain').parts
    parts[part][key].fill_(torch.nan)
    sick = make('rain', parts=parts)
    before = contents(store.root)
    with pytest.raises(ValueError, match=f"'rain' has diverged .*'{key}'"):
        store.save(sick)
    other.place('rain', partial(write_expert, sick))
    with pytest.raises(ValueError, match=f"'rain' has diverged .*'{key}'"):
        add_expert(store.root, other.root, 'rain')
    assert contents(store.root) == before


def test_task_of_one_image_is_whole(cnn):
    gate = PrototypeGate()
    gate.fit('night', torch.randn(1, 6))
    assert not gate.state('night')['max_distance'].isfinite()
    assert changed(cnn, dict(prototypes=gate.state('night'))) == ''


def test_adapter_and_head_that_do_not_fit_are_found(cnn):
    lora = cnn.store.load('night').parts['adapter']
    lora['gone.lora_A.weight'] = torch.zeros(2, 3)
    lora['gone.lora_B.weight'] = torch.zeros(3, 2)
    text = changed(cnn, dict(adapter=lora), classes=('sky', 'road'))
    assert "'night' does not fit the layers" in text
    assert 'names 2 classes but its head has 3' in text
    assert changed(cnn, dict(adapter={}), classes=('a', 'b', 'c')) == ''


# -- looking ------------------------------------------------------------------


def test_table_has_a_row_for_each_expert_in_order(cnn):
    rows = list_experts(cnn.store.root)
    folder = cnn.store.root / 'day'
    values = show_expert(cnn.store.root, 'day')['parameters']
    assert rows[0] == {
        'expert': 'day',
        'classes': 3,
        'rank': 2,
        'parameters': values['adapter'] + values['head'] + values['norm'],
        'bytes': sum(p.stat().st_size for p in folder.iterdir()),
        'task data': 'day',
        'started from': 'base',
        'checksums': 'ok'
    }
    assert [row['expert'] for row in rows] == ['day', 'night', 'fog']


def test_broken_expert_is_a_row_that_says_so(cnn):
    (cnn.store.root / 'day' / 'expert.json').unlink()
    (cnn.store.root / 'night' / 'head.safetensors').write_bytes(b'')
    day, night, fog = list_experts(cnn.store.root)
    assert 'day/expert.json' in day['checksums'] and len(day) == 2
    assert 'night/head.safetensors' in night['checksums']
    assert fog['checksums'] == 'ok'


def test_record_is_shown_whole(cnn):
    record = show_expert(cnn.store.root, 'night')
    assert record['name'] == 'night'
    assert record['classes'] == ['sky', 'road', 'car']
    assert record['base_fingerprint'] == cnn.store.base_fingerprint
    assert record['provenance']['seed'] == 1
    path = cnn.store.root / 'night' / 'head.safetensors'
    assert record['bytes'][path.name] == path.stat().st_size
    assert len(record['files'][path.name]) == 64


@pytest.mark.parametrize('provenance, data, start', [
    (dict(train_dataset=dict(type='A', data_root='b', x=1), started_from={}),
     'A b', 'base'),
    # 'india' is called 'night' now
    (dict(started_from=dict(day='1', india='2')), 'unknown', 'day, night'),
    (dict(imported_from='x/y'), 'PEFT folder x/y', 'imported'),
    (dict(), 'unknown', 'unknown'),
])  # yapf: disable
def test_data_and_start_are_told_in_a_few_words(store, make, provenance, data,
                                                start):
    store.save(make('night', provenance=dict(weights_sha256='2')))
    store.save(make('fog', provenance=provenance))
    row = list_experts(store.root)[-1]
    assert (row['task data'], row['started from']) == (data, start)


def test_merge_names_its_parts(cnn):
    merge_experts(cnn.store.root, ['day', 'fog'], 'both', [0.25, 0.75])
    row = list_experts(cnn.store.root)[-1]
    assert row['task data'] == '0.25 day + 0.75 fog'
    assert row['started from'] == 'merged'
