# SPDX-License-Identifier: Apache-2.0
"""Models that are told the task: one per task, and MDIL's domains."""
from __future__ import annotations

import copy

import pytest
import torch
from tiny import DAY, DUSK, NIGHT, batch_of, learn_task, one_model, predict

KINDS = ('SingleTaskSegmentor', 'MDILSegmentor')


@pytest.fixture(params=KINDS)
def learned(request):
    model = one_model(request.param, keep_logits=True)
    for task in (DAY, NIGHT):
        learn_task(model, task)
    return model.eval()


def predicted(model, *tasks):
    """An image of each task, predicted in one batch."""
    batches = [batch_of(task, 5, 1) for task in tasks]
    return model.test_step({
        key: [batch[key][0] for batch in batches]
        for key in ('inputs', 'data_samples')
    })


def test_each_image_is_predicted_by_what_its_task_left_behind(learned):
    mixed = predicted(learned, NIGHT, DAY, NIGHT)
    assert [s.expert for s in mixed] == ['night', 'day', 'night']
    for sample, task in zip(mixed, (NIGHT, DAY, NIGHT)):
        assert (sample.classes, sample.palette) == (task.classes, task.palette)
        alone, = predicted(learned, task)
        torch.testing.assert_close(sample.seg_logits.data,
                                   alone.seg_logits.data)


def test_network_of_a_task_is_loaded_once_for_many_images(
        learned, monkeypatch):
    predicted(learned, DAY)
    monkeypatch.setattr(learned, 'load_state_dict', None)
    assert [s.expert for s in predicted(learned, DAY, DAY)] == ['day', 'day']


def test_unknown_task_goes_to_the_newest(learned):
    batch = batch_of(DUSK, 5)
    del batch['data_samples'][1].task
    assert [s.expert for s in learned.test_step(batch)] == ['night', 'night']


def test_forced_task_predicts_all_images(learned):
    with learned.forced('day'):
        assert [s.expert
                for s in predicted(learned, NIGHT, DUSK)] == ['day', 'day']
    assert predicted(learned, NIGHT)[0].expert == 'night'
    with pytest.raises(ValueError, match="'fog' is no learned task; learned"):
        with learned.forced('fog'):
            pass


@pytest.mark.parametrize('kind', KINDS)
def test_nothing_is_predicted_before_a_task_was_learned(kind):
    with pytest.raises(ValueError, match='has learned no task yet'):
        predict(one_model(kind), DAY)


# -- one model per task ------------------------------------------------------


@pytest.mark.parametrize('loads', [False, True])
def test_each_task_starts_from_the_pretrained_weights(tmp_path, loads):
    model = one_model(
        'SingleTaskSegmentor',
        neck=dict(
            type='FPN',
            in_channels=[8, 16, 32, 64],
            out_channels=8,
            num_outs=4),
        decode_head=dict(
            type='FCNHead', in_channels=8, channels=8, num_classes=2))
    pretrained = copy.deepcopy(model)
    learn_task(model, DAY)
    if loads:
        model.save_task(DAY, tmp_path, {})
        model = copy.deepcopy(pretrained)
        model.load_tasks([DAY], tmp_path)
        predict(model, DAY)
    for name in ('backbone', 'neck'):
        wanted = getattr(pretrained, name).state_dict()
        for is_fresh in (False, True):
            state = getattr(model, name).state_dict()
            assert is_fresh == all(
                torch.equal(state[key], wanted[key]) for key in wanted)
            model.begin_task(NIGHT, [])
        model.activate('day')
    assert model.classes == DAY.classes


@pytest.mark.parametrize('loads', [False, True])
def test_each_task_goes_on_from_the_one_before(tmp_path, loads):
    model = one_model('SingleTaskSegmentor', init_from='previous')
    learn_task(model, DAY)
    day = {k: v.clone() for k, v in model.state_dict().items()}
    if loads:
        model.save_task(DAY, tmp_path, {})
        model = one_model('SingleTaskSegmentor', init_from='previous')
        model.load_tasks([DAY], tmp_path)
    learn_task(model, NIGHT, num_steps=0)
    night = model.state_dict()
    assert all(
        torch.equal(night[key], day[key]) for key in day
        if key.startswith('backbone.'))
    model.activate('day')
    assert all(
        torch.equal(value, day[key])
        for key, value in model.state_dict().items())


def test_other_starts_are_refused():
    with pytest.raises(ValueError, match="'previous', got 'nearest'"):
        one_model('SingleTaskSegmentor', init_from='nearest')


def test_tasks_cost_a_model_each():
    model = one_model('SingleTaskSegmentor')
    learn_task(model, DAY)
    one = model.kept_cost([])
    learn_task(model, DUSK)
    assert model.kept_cost([]) == {k: 2 * v for k, v in one.items()}
