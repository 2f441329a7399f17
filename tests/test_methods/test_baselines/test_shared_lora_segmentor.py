# SPDX-License-Identifier: Apache-2.0
"""One adapter that every task trains, over one frozen base."""
from __future__ import annotations

import copy

import pytest
import torch
from tiny import (DAY, DUSK, NIGHT, batch_of, learn_task, one_model,
                  one_model_config, predict, train)

from mmseg_mile.library.expert_store import ExpertStore

KIND = 'SharedLoRASegmentor'


def build(base_training='none'):
    config = one_model_config(KIND).backbone
    return one_model(KIND, backbone=dict(config, base_training=base_training))


@pytest.fixture
def learned():
    model = build()
    learn_task(model, DAY)
    return model


def adapter_of(model):
    """What is kept beside base and head."""
    return {
        key: value
        for key, value in model.kept_state().items()
        if not key.startswith(('backbone.', 'decode_head.'))
    }


@pytest.mark.parametrize('base_training', ['none', 'first_task'])
def test_base_never_moves_unless_the_first_task_trains_it(base_training):
    model = build(base_training)
    prints = [model.backbone.fingerprint()]
    for task in (DAY, NIGHT):
        learn_task(model, task)
        prints.append(model.backbone.fingerprint())
    assert (prints[0] != prints[1]) == (base_training == 'first_task')
    assert prints[1] == prints[2]


def test_there_is_one_adapter_which_goes_on_from_where_it_was(learned):
    before = copy.deepcopy(adapter_of(learned))
    learned.begin_task(NIGHT, [])
    train(learned, NIGHT, 0)
    learned.backbone.finish_training()
    assert learned.backbone.experts.names == ('night', )
    same = adapter_of(learned)
    assert before and all(torch.equal(same[k], v) for k, v in before.items())
    learn_task(learned, DUSK)
    after = adapter_of(learned)
    # down and up of a layer, and what a norm layer trains
    for key in ('lora/stem.3.lora_A.weight', 'lora/stem.3.lora_B.weight',
                'norm/stem.1.weight'):
        assert not torch.equal(after[key], before[key])


def test_only_adapter_norms_and_head_train():
    model = build()
    model.begin_task(DAY, [])
    model.train()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert any(n.startswith('decode_head.') for n in trained)
    assert any('lora_' in n for n in trained)
    of_base = {n for n in trained if n.startswith('backbone.')
               and 'lora_' not in n}  # yapf: disable
    assert of_base and all(model.get_parameter(n).dim() == 1 for n in of_base)


def test_prediction_is_what_training_ended_with():
    model = build()
    with pytest.raises(ValueError, match='learned no task yet'):
        predict(model, DAY)
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
    # and it takes the adapter
    for value in model.backbone.experts[model.adapter].lora.values():
        value.zero_()
    assert not torch.allclose(predict(copy.deepcopy(model), DAY), merged)


def test_library_holds_the_base_once_and_an_adapter_per_task(
        learned, tmp_path):
    learned.save_task(DAY, tmp_path, {})
    cost = learned.kept_cost([])
    parts = [learned.backbone.base_state(), learned.decode_head.state_dict(),
             adapter_of(learned)]  # yapf: disable
    assert cost == dict(
        params=sum(v.numel() for part in parts for v in part.values()),
        bytes=sum(v.nbytes for part in parts for v in part.values()))
    learn_task(learned, DUSK)
    learned.save_task(DUSK, tmp_path, {})
    assert ExpertStore(tmp_path).names == ['day', 'dusk']
    assert len(list(tmp_path.rglob('base.safetensors'))) == 1
    # the last one is all that must be kept
    assert learned.kept_cost([]) == cost


@pytest.mark.parametrize('changes, message', [
    (dict(backbone=one_model_config(KIND).backbone.backbone),
     'LoRAExpertBackbone, got ResNetV1c'),
    (dict(neck=dict(
        type='FPN', in_channels=[8, 16, 32, 64], out_channels=8, num_outs=4)),
     'model.neck .*neither adapter nor'),
])  # yapf: disable
def test_parts_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        one_model(KIND, **changes)
