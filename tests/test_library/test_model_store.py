# SPDX-License-Identifier: Apache-2.0
"""Whole models on disk."""
from __future__ import annotations

import shutil

import pytest
import torch

from mmseg_mile.library.expert_store import load_model, save_model
from mmseg_mile.library.files import pending, read_json, write_json


@pytest.fixture
def folder(tmp_path):
    """A stored model of one tensor."""
    save_model(tmp_path / 'day', {'a': torch.arange(3.)}, ('road', 'sky'),
               ((1, 2, 3), (4, 5, 6)), dict(seed=1))
    return tmp_path / 'day'


def test_model_comes_back_with_its_label_space(folder):
    state, classes, palette = load_model(folder)
    assert torch.equal(state['a'], torch.arange(3.))
    assert classes == ('road', 'sky')
    assert palette == ((1, 2, 3), (4, 5, 6))


def test_changed_weights_are_refused_by_name(folder):
    path = folder / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:-1] + b'?')
    with pytest.raises(ValueError, match='model.safetensors is missing or'):
        load_model(folder)


def test_changed_record_is_refused_by_name(folder):
    path = folder / 'model.json'
    path.write_text(path.read_text().replace('road', 'roaD'))
    with pytest.raises(
            ValueError, match='model.json is missing or was changed'):
        load_model(folder)


@pytest.mark.parametrize('file', ['model.json', 'model.safetensors'])
def test_missing_file_is_refused_by_name(folder, file):
    (folder / file).unlink()
    with pytest.raises(ValueError, match=file):
        load_model(folder)


def test_record_of_another_schema_is_refused(folder):
    write_json(folder / 'model.json', dict(schema=1))
    with pytest.raises(ValueError, match='model.json is not of schema 2'):
        load_model(folder)


@pytest.mark.parametrize('change', [
    dict(files={}),
    dict(files=['model.safetensors']),
    dict(classes='road'),
    dict(palette=[1, 2, 3])
])
def test_record_without_what_a_model_needs_is_refused(folder, change):
    record = read_json(folder / 'model.json')
    write_json(folder / 'model.json', dict(record, **change))
    with pytest.raises(ValueError, match='model.json must hold'):
        load_model(folder)


def test_model_of_another_task_is_refused(folder):
    folder.rename(folder.with_name('night'))
    with pytest.raises(ValueError, match="model.json belongs to model 'day'"):
        load_model(folder.with_name('night'))


def test_model_that_a_killed_process_was_replacing_is_found(folder):
    new = pending(folder)
    shutil.copytree(folder, new)
    folder.rename(folder.with_name('.day.old'))
    assert load_model(folder)[1] == ('road', 'sky')
