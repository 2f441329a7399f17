# SPDX-License-Identifier: Apache-2.0
"""Every way in which a library can be broken is found and named."""
from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch

from mmseg_mile.library.edits import verify_library

FILES = ('adapter_config.json', 'adapter_model.safetensors',
         'head.safetensors', 'norm.safetensors', 'prototypes.safetensors',
         'expert.json')


def broken(library):
    return verify_library(library.store.root).broken


def test_whole_library_is_whole(library):
    state = verify_library(library.store.root)
    assert (state.num_experts, state.broken, state.leftovers) == (3, [], [])


@pytest.mark.parametrize('file', FILES)
@pytest.mark.parametrize('gone', [False, True])
def test_changed_or_missing_file_is_named(cnn, file, gone):
    path = cnn.store.root / 'night' / file
    if gone:
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    problem, = broken(cnn)
    assert str(path) in problem


def test_all_broken_files_are_named(cnn):
    for name in ('day', 'fog'):
        (cnn.store.root / name / 'head.safetensors').write_bytes(b'')
    (cnn.store.root / 'day' / 'norm.safetensors').unlink()
    text = '\n'.join(broken(cnn))
    assert 'day/norm.safetensors' in text
    assert 'fog/head.safetensors' in text


def test_broken_base_is_named(cnn):
    path = cnn.store.root / 'base.safetensors'
    path.write_bytes(path.read_bytes()[:-1])
    problem, = broken(cnn)
    assert str(path) in problem


def test_base_that_is_not_the_one_of_its_fingerprint_is_found(cnn):
    state, fingerprint = cnn.store.load_base()
    state['stem.0.weight'] += 1
    cnn.store.save_base(state, fingerprint)
    problem, = broken(cnn)
    assert f'the library says {fingerprint[:16]}' in problem


def changed(cnn, parts=None, **changes):
    night = cnn.store.load('night')
    parts = dict(night.parts, **(parts or {}))
    cnn.store.save(dataclasses.replace(night, parts=parts, **changes))
    return '\n'.join(broken(cnn))


@pytest.mark.parametrize('part', ['adapter', 'norm', 'head', 'prototypes'])
def test_values_that_are_not_finite_are_found(cnn, part):
    tensors = cnn.store.load('night').parts[part]
    key = next(k for k, v in tensors.items() if v.is_floating_point())
    tensors[key] = torch.full_like(tensors[key], torch.nan)
    if key == 'reach':
        key = 'centroids'
        tensors[key] = torch.full_like(tensors[key], torch.nan)
    text = changed(cnn, {part: tensors})
    assert f'{key!r} holds values that are not finite' in text
    assert 'night' in text


def test_infinite_reach_is_fine(cnn):
    prototypes = cnn.store.load('night').parts['prototypes']
    prototypes['reach'] = torch.tensor(torch.inf, dtype=torch.float64)
    assert changed(cnn, dict(prototypes=prototypes)) == ''


def test_adapter_that_fits_no_layer_is_found(cnn):
    lora = cnn.store.load('night').parts['adapter']
    lora['gone.lora_A.weight'] = torch.zeros(2, 3)
    lora['gone.lora_B.weight'] = torch.zeros(3, 2)
    assert "'night' does not fit the layers" in changed(
        cnn, dict(adapter=lora))


def test_head_with_other_classes_than_the_record_is_found(cnn):
    text = changed(cnn, classes=('sky', 'road'))
    assert 'names 2 classes but its head has 3' in text


def test_expert_without_adapter_is_whole(cnn):
    assert changed(cnn, dict(adapter={})) == ''


def test_leftovers_do_no_harm_and_are_told(cnn):
    shutil.copytree(cnn.store.root / 'day', cnn.store.root / 'orphan')
    state = verify_library(cnn.store.root)
    assert not state.broken
    assert [path.name for path in state.leftovers] == ['orphan']


def test_library_without_index_is_refused(cnn):
    (cnn.store.root / 'library.json').write_text('{}')
    with pytest.raises(ValueError, match='library.json'):
        verify_library(cnn.store.root)
