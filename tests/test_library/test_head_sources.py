# SPDX-License-Identifier: Apache-2.0
"""Heads from experts and from mmseg's checkpoints."""
from __future__ import annotations

import copy

import pytest
import torch

from mmseg_mile.apis import export_expert
from mmseg_mile.apis.expert_import import head_of_checkpoint, head_of_expert


@pytest.fixture
def checkpoint(cnn, tmp_path):
    """``checkpoint(**changes)``: 'night' as mmseg would save it."""
    path = tmp_path / 'night.pth'
    content = export_expert(cnn.model, 'night')

    def save(**changes):
        torch.save({**content, **changes}, path)
        return path

    return save


def template(cnn):
    return copy.deepcopy(dict(cnn.config['decode_head']))


def test_head_of_an_expert_is_its_own(cnn):
    head = head_of_expert(cnn.store.root, 'night')
    assert head.classes == ('sky', 'road', 'car')
    assert torch.equal(
        head.state['conv_seg.weight'],
        cnn.store.load('night').parts['head']['conv_seg.weight'])


def test_head_of_a_checkpoint_has_its_values_and_classes(cnn, checkpoint):
    head = head_of_checkpoint(checkpoint(), template(cnn))
    expert = cnn.store.load('night')
    assert head.classes == expert.classes
    assert head.palette == expert.palette
    assert head.config['num_classes'] == 3
    assert set(head.state) == set(expert.parts['head'])
    assert all(
        torch.equal(value, expert.parts['head'][key])
        for key, value in head.state.items())


def test_classes_of_older_checkpoints_are_found(cnn, checkpoint):
    meta = dict(CLASSES=['a', 'b', 'c'], PALETTE=[[0, 0, 0]] * 3)
    head = head_of_checkpoint(checkpoint(meta=meta), template(cnn))
    assert head.classes == ('a', 'b', 'c')


def test_checkpoint_without_classes_is_refused(cnn, checkpoint):
    with pytest.raises(ValueError, match='meta.dataset_meta.*--head-from'):
        head_of_checkpoint(checkpoint(meta={}), template(cnn))


def test_checkpoint_of_a_backbone_is_refused(cnn, checkpoint):
    path = checkpoint(state_dict={'stem.0.weight': torch.zeros(1)})
    with pytest.raises(ValueError, match="no key that begins with 'decode"):
        head_of_checkpoint(path, template(cnn))


def test_missing_checkpoint_is_refused(cnn, tmp_path):
    with pytest.raises(ValueError, match='no.pth does not exist'):
        head_of_checkpoint(tmp_path / 'no.pth', template(cnn))


def test_checkpoint_that_would_run_code_is_refused(cnn, tmp_path):
    torch.save(dict(state_dict=pytest.raises), tmp_path / 'evil.pth')
    with pytest.raises(ValueError, match='more than weights'):
        head_of_checkpoint(tmp_path / 'evil.pth', template(cnn))
