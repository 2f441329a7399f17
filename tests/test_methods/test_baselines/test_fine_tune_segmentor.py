# SPDX-License-Identifier: Apache-2.0
"""One network for all tasks: fine-tuning, replay, joint training, keeping."""
from __future__ import annotations

import copy

import pytest
import torch
from mmcv.cnn import is_norm
from mmengine.structures import PixelData
from tiny import (AUXILIARY_HEAD, DAY, DUSK, NIGHT, learn_task, one_model,
                  one_model_config, predict, train)

from mmseg.structures import SegDataSample

METHODS = ('FineTuneSegmentor', 'JointSegmentor', 'EWCSegmentor',
           'LwFSegmentor', 'SharedLoRASegmentor', 'SingleTaskSegmentor',
           'MDILSegmentor')
STREAM = (DAY, NIGHT, DUSK)


def learned(kind, *tasks, **changes):
    """A model that knows the stream and has learned some of it."""
    model = one_model(kind, **changes)
    model.check_stream(STREAM)
    for task in tasks:
        learn_task(model, task)
    return model


@pytest.mark.parametrize('kind', METHODS)
def test_loaded_model_predicts_and_goes_on_as_the_one_that_was_not(
        kind, tmp_path):
    model, other = learned(kind), learned(kind)
    for task in (DAY, NIGHT):
        learn_task(model, task)
        model.save_task(task, tmp_path, {})
    other.load_tasks([DAY], tmp_path)
    other.load_tasks([NIGHT], tmp_path)
    assert (other.classes, other.palette) == (model.classes, model.palette)
    for task in (DAY, NIGHT):
        assert torch.equal(predict(model, task), predict(other, task))
    for each in (model, other):
        torch.manual_seed(3)
        learn_task(each, DUSK)
    mine, theirs = model.kept_state(), other.kept_state()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


# -- one head ----------------------------------------------------------------


@pytest.mark.parametrize('kind', METHODS[:5])
def test_head_predicts_the_union_of_the_classes(kind):
    model = learned(kind, DAY, NIGHT)
    assert model.classes == ('sky', 'road', 'lamp')
    assert model.palette == ((1, 1, 1), (2, 2, 2), (3, 3, 3))
    assert model.decode_head.conv_seg.out_channels == model.num_classes == 3
    assert model.expert_names == ()
    with pytest.raises(ValueError, match="has no expert 'day'"):
        with model.forced('day'):
            pass


def test_grown_head_keeps_the_rows_of_known_classes():
    model = learned('FineTuneSegmentor', DAY)
    before = copy.deepcopy(model.decode_head.state_dict())
    model.begin_task(NIGHT, [])
    for key, value in model.decode_head.state_dict().items():
        kept = value[:2] if key.startswith('conv_seg') else value
        assert torch.equal(kept, before[key])
    head = model.decode_head
    model.begin_task(DUSK, [])
    assert model.decode_head is head


def test_joint_training_has_the_classes_of_the_stream_from_the_start():
    model = learned('JointSegmentor')
    model.begin_task(DAY, [])
    assert model.classes == ('sky', 'road', 'lamp')
    before = copy.deepcopy(model.state_dict())
    model.begin_task(NIGHT, [])
    assert all(
        torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize('kind', ['FineTuneSegmentor', 'JointSegmentor'])
def test_weights_for_another_number_of_classes_are_refused(kind):
    head = copy.deepcopy(one_model_config(kind).decode_head)
    head.loss_decode.class_weight = [1.0, 2.0]
    model = one_model(kind, decode_head=head)
    model.check_stream([DAY, DUSK])
    # each task has two classes, both together have three
    with pytest.raises(ValueError, match='has 2 values, .* 3 classes'):
        model.check_stream([DAY, NIGHT])


@pytest.mark.parametrize('loads', [False, True])
def test_each_image_is_labelled_in_the_classes_of_its_task(
        monkeypatch, tmp_path, loads):
    model = learned('FineTuneSegmentor', DAY)
    if loads:
        model.save_task(DAY, tmp_path, {})
        model = learned('FineTuneSegmentor')
        model.load_tasks([DAY], tmp_path)
    model.begin_task(NIGHT, [])
    seen = []
    monkeypatch.setattr(
        'mmseg.models.EncoderDecoder.loss', lambda self, inputs, samples: seen.
        extend(s.gt_sem_seg.data.flatten().tolist() for s in samples))
    label = torch.tensor([[[0, 1, 255]]], dtype=torch.uint8)
    samples = [
        SegDataSample(
            gt_sem_seg=PixelData(data=label.clone()), metainfo=metainfo)
        for metainfo in (dict(task='day'), dict(task='night'), dict())
    ]
    model.loss(torch.zeros(3, 3, 1, 3), samples)
    # sky, road; lamp, road; and, of the task that is trained, lamp, road
    assert seen == [[0, 1, 255], [2, 1, 255], [2, 1, 255]]


def test_the_whole_network_trains():
    model = learned('FineTuneSegmentor', DAY)
    model.begin_task(NIGHT, [])
    before = copy.deepcopy(dict(model.named_parameters()))
    train(model, NIGHT)
    assert not any(
        torch.equal(p, before[n])
        for n, p in model.named_parameters() if p.dim() > 1)


def test_auxiliary_heads_are_not_kept():
    model = learned(
        'FineTuneSegmentor', DAY, auxiliary_head=dict(AUXILIARY_HEAD))
    assert not any('auxiliary' in key for key in model.kept_state())


# -- norm statistics of EWC and LwF ------------------------------------------


def statistics(model):
    return torch.cat([
        value.flatten() for key, value in model.state_dict().items()
        if key.endswith(('running_mean', 'running_var'))
    ])


@pytest.mark.parametrize('kind', ['EWCSegmentor', 'LwFSegmentor'])
@pytest.mark.parametrize('hold', [True, False])
def test_later_tasks_keep_the_statistics_of_the_first_if_asked_to(kind, hold):
    model = one_model(kind, hold_statistics=hold)
    fresh = statistics(model)
    learn_task(model, DAY)
    before = statistics(model)
    weight = model.backbone.layer1[0].bn1.weight.clone()
    assert not torch.equal(before, fresh)
    model.begin_task(NIGHT, [])
    train(model, NIGHT)
    assert torch.equal(statistics(model), before) == hold
    assert not torch.equal(model.backbone.layer1[0].bn1.weight, weight)


def test_auxiliary_heads_are_new_and_make_their_own_statistics():
    head = dict(AUXILIARY_HEAD, norm_cfg=dict(type='BN'))
    model = learned('EWCSegmentor', DAY, auxiliary_head=head)
    model.begin_task(NIGHT, [])
    model.train()
    norms = [m for m in model.auxiliary_head.modules() if is_norm(m)]
    assert norms and all(m.training for m in norms)
    assert not any(m.training
                   for m in model.decode_head.modules() if is_norm(m))
