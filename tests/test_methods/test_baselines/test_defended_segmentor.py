# SPDX-License-Identifier: Apache-2.0
"""Norm statistics while earlier tasks are defended."""
from __future__ import annotations

import pytest
import torch
from mmcv.cnn import is_norm
from tiny import DAY, NIGHT, learn_task, one_model, train

AUXILIARY = dict(
    type='FCNHead',
    in_channels=32,
    in_index=2,
    channels=8,
    num_convs=1,
    norm_cfg=dict(type='BN'),
    num_classes=19)


def statistics(model):
    return torch.cat([
        value.flatten() for key, value in model.state_dict().items()
        if key.endswith(('running_mean', 'running_var'))
    ])


@pytest.fixture(params=['EWCSegmentor', 'LwFSegmentor'])
def kind(request):
    return request.param


def test_first_task_makes_the_statistics(kind):
    model = one_model(kind)
    before = statistics(model)
    model.begin_task(DAY, [])
    train(model, DAY, 1)
    assert not torch.equal(statistics(model), before)


@pytest.mark.parametrize('hold', [True, False])
def test_later_tasks_keep_them_if_asked_to(kind, hold):
    model = one_model(kind, hold_statistics=hold)
    learn_task(model, DAY)
    before = statistics(model)
    model.begin_task(NIGHT, [])
    train(model, NIGHT)
    assert torch.equal(statistics(model), before) == hold


def test_norm_layers_train_what_is_no_statistic(kind):
    model = one_model(kind)
    learn_task(model, DAY)
    model.begin_task(NIGHT, [])
    before = model.backbone.layer1[0].bn1.weight.clone()
    train(model, NIGHT)
    assert not torch.equal(model.backbone.layer1[0].bn1.weight, before)


def test_auxiliary_heads_are_new_and_make_their_own(kind):
    model = one_model(kind, auxiliary_head=AUXILIARY)
    learn_task(model, DAY)
    model.begin_task(NIGHT, [])
    model.train()
    norms = [m for m in model.auxiliary_head.modules() if is_norm(m)]
    assert norms and all(m.training for m in norms)
    assert not any(m.training
                   for m in model.decode_head.modules() if is_norm(m))


def test_a_loaded_model_keeps_them_too(kind, tmp_path):
    model = one_model(kind)
    learn_task(model, DAY)
    model.save_task(DAY, tmp_path, {})
    other = one_model(kind)
    other.load_tasks([DAY], tmp_path)
    other.begin_task(NIGHT, [])
    train(other, NIGHT)
    assert torch.equal(statistics(other), statistics(model))
