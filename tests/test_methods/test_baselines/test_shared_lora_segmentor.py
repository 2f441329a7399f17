# SPDX-License-Identifier: Apache-2.0
"""One adapter that every task trains, over one frozen base."""
from __future__ import annotations

import copy
import json
from functools import partial

import pytest
import torch
from run_comparison import differences
from tiny import (DAY, DUSK, NIGHT, StopAt, batch_of, learn_task, one_model,
                  one_model_config, predict, train)

from mmseg_mile.library.expert_store import ExpertStore

KIND = 'SharedLoRASegmentor'


def build(**backbone):
    config = one_model_config(KIND).backbone
    return one_model(KIND, backbone=dict(config, **backbone))


@pytest.fixture
def model():
    return build(base_training='none')


@pytest.fixture
def learned(model):
    learn_task(model, DAY)
    return model


def adapter_of(model):
    adapter = model.backbone.experts[model.adapter]
    return {**adapter.lora, **adapter.norm}


def test_base_never_moves(learned):
    base = learned.backbone.fingerprint()
    learn_task(learned, NIGHT)
    assert learned.backbone.fingerprint() == base


def test_first_task_may_train_the_base():
    model = build(base_training='first_task')
    start = model.backbone.fingerprint()
    learn_task(model, DAY)
    trained = model.backbone.fingerprint()
    learn_task(model, NIGHT)
    assert trained != start
    assert model.backbone.fingerprint() == trained


def test_there_is_one_adapter_which_goes_on_from_where_it_was(learned):
    before = adapter_of(learned)
    learned.begin_task(NIGHT, [])
    learned.backbone.finish_training()
    assert learned.backbone.experts.names == ('night', )
    for key, value in adapter_of(learned).items():
        assert torch.equal(value, before[key])


def test_every_task_trains_it(learned):
    before = adapter_of(learned)
    learn_task(learned, NIGHT)
    after = adapter_of(learned)
    # down and up of a layer, and what a norm layer trains
    for key in ('stem.3.lora_A.weight', 'stem.3.lora_B.weight',
                'stem.1.weight'):
        assert not torch.equal(after[key], before[key])


def test_only_adapter_norms_and_head_train(model):
    model.begin_task(DAY, [])
    model.train()
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen and all(n.startswith('backbone.') for n in frozen)
    trained = [
        n for n, p in model.named_parameters()
        if p.requires_grad and n.startswith('backbone.')
    ]
    assert trained and all(
        'lora_' in n or 'bn' in n or 'stem' in n or 'downsample' in n
        for n in trained)


def test_head_speaks_the_union_of_the_classes(learned):
    learn_task(learned, NIGHT)
    assert learned.classes == ('sky', 'road', 'lamp')
    assert learned.expert_names == ()


def test_prediction_is_what_training_ended_with(model):
    model.begin_task(DAY, [])
    train(model, DAY)
    model.eval()
    images = model.data_preprocessor(batch_of(DAY, 5), False)['inputs']
    with torch.no_grad():
        live = model._forward(images)
    model.end_task(DAY, [])
    merged = predict(model, DAY)
    coarse = torch.nn.functional.interpolate(
        live, (32, 32), mode='bilinear', align_corners=False)
    torch.testing.assert_close(merged, coarse, rtol=1e-4, atol=1e-5)


def test_prediction_needs_the_adapter(learned):
    with_adapter = predict(learned, DAY)
    adapter = copy.deepcopy(learned.backbone.experts[learned.adapter])
    for value in adapter.lora.values():
        value.zero_()
    learned.backbone.experts[learned.adapter] = adapter
    assert not torch.allclose(predict(learned, DAY), with_adapter)


def test_nothing_is_predicted_before_a_task_is_learned(model):
    with pytest.raises(ValueError, match='learned no task yet'):
        predict(model, DAY)


def test_saved_tasks_predict_the_same(learned, tmp_path):
    learned.save_task(DAY, tmp_path, dict(seed=0))
    learn_task(learned, NIGHT)
    learned.save_task(NIGHT, tmp_path, dict(seed=0))
    other = build(base_training='none')
    other.load_tasks([DAY, NIGHT], tmp_path)
    assert (other.classes, other.palette) == (learned.classes, learned.palette)
    assert other.backbone.experts.names == ('night', )
    assert torch.equal(predict(other, NIGHT), predict(learned, NIGHT))


def test_tasks_may_be_loaded_one_after_another(learned, tmp_path):
    learned.save_task(DAY, tmp_path, {})
    learn_task(learned, NIGHT)
    learned.save_task(NIGHT, tmp_path, {})
    other = build(base_training='none')
    other.load_tasks([DAY], tmp_path)
    assert other.classes == DAY.classes
    other.load_tasks([NIGHT], tmp_path)
    assert torch.equal(predict(other, NIGHT), predict(learned, NIGHT))


def test_loaded_model_goes_on_as_the_one_that_was_not(tmp_path):
    model = build(base_training='first_task')
    learn_task(model, DAY)
    model.save_task(DAY, tmp_path, {})
    other = build(base_training='first_task')
    other.load_tasks([DAY], tmp_path)
    for each in (model, other):
        torch.manual_seed(3)
        learn_task(each, NIGHT)
    assert torch.equal(predict(model, NIGHT), predict(other, NIGHT))
    mine, theirs = adapter_of(model), adapter_of(other)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_library_holds_the_base_once_and_an_adapter_per_task(
        learned, tmp_path):
    learned.save_task(DAY, tmp_path, {})
    learn_task(learned, DUSK)
    learned.save_task(DUSK, tmp_path, {})
    assert ExpertStore(tmp_path).names == ['day', 'dusk']
    assert len(list(tmp_path.rglob('base.safetensors'))) == 1


def test_kept_is_one_base_one_adapter_and_one_head(learned, tmp_path):
    learned.save_task(DAY, tmp_path, {})
    cost = learned.kept_cost([])
    parts = [
        learned.backbone.base_state(),
        learned.decode_head.state_dict(),
        adapter_of(learned)
    ]
    values = [v for part in parts for v in part.values()]
    assert cost == dict(
        params=sum(v.numel() for v in values),
        bytes=sum(v.nbytes for v in values))
    learn_task(learned, DUSK)
    learned.save_task(DUSK, tmp_path, {})
    assert learned.kept_cost([]) == cost


def test_backbone_without_adapters_is_refused():
    plain = one_model_config(KIND).backbone.backbone
    with pytest.raises(ValueError, match='LoRAExpertBackbone, got ResNetV1c'):
        one_model(KIND, backbone=plain)


def test_neck_is_refused():
    with pytest.raises(ValueError, match='model.neck .*neither adapter nor'):
        one_model(
            KIND,
            neck=dict(
                type='FPN',
                in_channels=[8, 16, 32, 64],
                out_channels=8,
                num_outs=4))


# -- on the tiny stream -------------------------------------------------------


@pytest.fixture(scope='module')
def config(short_stream):
    return partial(short_stream, one_model_config(KIND))


@pytest.fixture(scope='module')
def run(learn, config, tmp_path_factory):
    return learn_task(config(tmp_path_factory.mktemp('shared_lora') / 'run'))


@pytest.mark.integration
def test_stream_is_learned_without_experts(run):
    results = json.loads((run.work_dir / 'results.json').read_text())
    assert results['method'] == 'one shared LoRA'
    assert results['gate']['accuracy'] is None
    assert results['cost']['experts'] == []
    assert all(None not in row for row in results['miou']['routed'])
    assert run.diary.predicted == [9, 9, 9]


@pytest.mark.integration
@pytest.mark.parametrize('stop', [('night', 2), ('infrared', 0)])
def test_resumed_stream_equals_the_uninterrupted_one(run, config,
                                                     stop_and_resume, tmp_path,
                                                     stop):
    stop_and_resume(config, tmp_path / 'run', StopAt(*stop))
    assert differences(run.work_dir, tmp_path / 'run') == []
