# SPDX-License-Identifier: Apache-2.0
"""Experts of ``ExpertSegmentor`` on disk and back."""
from __future__ import annotations

import pytest
import torch
from mmengine.config import ConfigDict

from mmseg.registry import MODELS
from mmseg_mile.library.expert_store import ExpertStore

STREAM = ('day', 'night', 'fog')


@pytest.fixture
def tasks(toys):
    """The three tasks."""
    return [toys.task(name) for name in STREAM]


@pytest.fixture
def library(learned_once, tasks, tmp_path):
    """What the learned model wrote."""
    for task in tasks:
        learned_once.save_task(task, tmp_path / 'library', dict(seed=3))
    return tmp_path / 'library'


def test_loaded_model_predicts_bit_for_bit_the_same(learned_once, toys, tasks,
                                                    library):
    # built afresh, of another random base, without any image
    torch.manual_seed(99)
    model = MODELS.build(ConfigDict(toys.config))
    assert model.backbone.fingerprint() != (
        learned_once.backbone.fingerprint())
    model.load_tasks(tasks, library)
    images = ('fog', 'day', 'night', 'day')
    for mine, theirs in zip(
            toys.predict(model, *images), toys.predict(learned_once, *images)):
        assert torch.equal(mine.seg_logits.data, theirs.seg_logits.data)
        for field in ('expert', 'classes', 'palette', 'distances', 'ood'):
            assert getattr(mine, field) == getattr(theirs, field)


def test_loaded_model_goes_on_learning(toys, tasks, library):
    model = toys.model()
    model.load_tasks(tasks[:2], library)
    assert model.expert_names == STREAM[:2]
    toys.learn(model, 'fog', init_from='nearest')
    assert toys.predict(model, 'fog')[0].expert == 'fog'


def test_loading_no_task_needs_no_library(toys, fresh, tmp_path):
    fresh.load_tasks([], tmp_path / 'nowhere')
    assert fresh.expert_names == ()


def test_library_of_another_pretrained_base_is_refused(toys, tasks, library,
                                                       tmp_path):
    inner = toys.config['backbone']['backbone']
    path = tmp_path / 'other.pth'
    torch.save(dict(state_dict=MODELS.build(inner).state_dict()), path)
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    model = toys.model(
        backbone=dict(
            toys.config['backbone'], backbone=dict(inner, init_cfg=init_cfg)))
    model.init_weights()
    stored = ExpertStore(library).load_base()[1][:16]
    mine = model.backbone.fingerprint()[:16]
    with pytest.raises(ValueError, match=f'{stored}.*{mine}.*other.pth'):
        model.load_tasks(tasks, library)
    assert model.expert_names == ()


def test_saving_into_the_library_of_another_base_is_refused(
        learned, tasks, library):
    learned.backbone.backbone.layer1[0].conv1.weight.data.add_(1)
    with pytest.raises(ValueError, match="expert 'day' belongs to the base"):
        learned.save_task(tasks[0], library, {})


def test_expert_of_another_base_is_not_made_routable(learned_once, fresh):
    expert = learned_once.export_expert('day')
    expert.base_fingerprint = '0' * 64
    with pytest.raises(ValueError, match='was trained on the base 00000000'):
        fresh.import_expert(expert)
    assert fresh.expert_names == () and fresh.gate.expert_names == ()


def test_expert_whose_head_lacks_a_class_is_refused(learned_once, fresh):
    expert = learned_once.export_expert('day')
    expert.classes = ('road', 'sky', 'lamp')
    with pytest.raises(ValueError, match='names 3 classes but its head has 2'):
        fresh.import_expert(expert)


def test_provenance_is_kept(library):
    provenance = ExpertStore(library).load('day').provenance
    checksum = provenance.pop('weights_sha256')
    assert len(checksum) == 64
    assert provenance == dict(seed=3, started_from={})


def test_expert_of_a_gate_without_statistics_is_kept_too(toys, tmp_path):
    model, again = (toys.model(gate=dict(type='LastGate')) for _ in range(2))
    toys.learn(model, 'day')
    model.save_task(toys.task('day'), tmp_path, {})
    again.load_tasks([toys.task('day')], tmp_path)
    assert toys.predict(again, 'night')[0].expert == 'day'
