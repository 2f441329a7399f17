# SPDX-License-Identifier: Apache-2.0
"""``lora=None``: a frozen base with a head per task."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.library.expert_store import ExpertStore

STREAM = ('day', 'night', 'fog')


@pytest.fixture
def heads_only(toys):
    """``heads_only(**changes)``: a model whose experts adapt no layer."""

    def build(**changes):
        backbone = dict(toys.config['backbone'], lora=None, train_norm=False)
        return toys.model(backbone={**backbone, **changes})

    return build


@pytest.fixture
def taught(heads_only, toys):
    """It has learned the stream."""
    model = heads_only()
    for name in STREAM:
        toys.learn(model, name, init_from='nearest')
    return model


def logits(model, toys, *names):
    return [s.seg_logits.data for s in toys.predict(model, *names)]


def test_only_heads_train(heads_only, toys):
    model = heads_only()
    base = model.backbone.fingerprint()
    model.begin_task(toys.task('day'), toys.loader('day'))
    trained = {n.split('.')[0] for n, p in model.named_parameters()
               if p.requires_grad}  # yapf: disable
    assert trained == {'decode_head', 'auxiliary_head'}
    first = toys.train(model, 'day', 1)['loss']
    assert toys.train(model, 'day', 20)['loss'] < 0.99 * first
    model.eval()
    model.end_task(toys.task('day'), toys.loader('day'))
    assert model.backbone.fingerprint() == base
    assert not any(p.requires_grad for p in model.backbone.parameters())


def test_images_are_routed_and_spoken_of_by_their_heads(taught, toys):
    samples = toys.predict(taught, 'fog', 'day', 'night')
    assert [s.expert for s in samples] == ['fog', 'day', 'night']
    assert samples[2].classes == toys.task('night').classes


def test_prediction_is_that_of_the_base_and_the_head(taught, toys):
    inputs = taught.data_preprocessor(toys.batch('day'))['inputs']
    head = taught.heads.module('day', taught.device)
    with torch.no_grad(), taught.backbone.base():
        wanted = head.predict(
            taught.backbone(inputs), [dict(img_shape=(32, 32))],
            taught.test_cfg)
    torch.testing.assert_close(logits(taught, toys, 'day')[0], wanted[0])


def test_later_heads_leave_earlier_ones_alone(heads_only, toys):
    model = heads_only()
    toys.learn(model, 'day')
    before, = logits(model, toys, 'day')
    toys.learn(model, 'night', init_from='previous')
    with model.forced('day'):
        assert torch.equal(logits(model, toys, 'day')[0], before)


def test_first_task_may_train_the_base(heads_only, toys):
    model = heads_only(base_training='first_task')
    start = model.backbone.fingerprint()
    toys.learn(model, 'day')
    trained = model.backbone.fingerprint()
    assert trained != start
    toys.learn(model, 'night')
    assert model.backbone.fingerprint() == trained


@pytest.mark.parametrize('executor', ['merged', 'low_rank'])
def test_mixed_batch_equals_each_image_alone(taught, toys, executor):
    taught.backbone.execution.executor = executor
    names = ('night', 'day', 'fog', 'night')
    batch = toys.batch(*names)
    for index, together in enumerate(taught.test_step(batch)):
        alone, = taught.test_step({
            k: v[index:index + 1]
            for k, v in batch.items()
        })
        torch.testing.assert_close(together.seg_logits.data,
                                   alone.seg_logits.data)


def test_library_is_read_again_bit_for_bit(taught, heads_only, toys, tmp_path):
    tasks = [toys.task(name) for name in STREAM]
    for task in tasks:
        taught.save_task(task, tmp_path, {})
    for expert in ExpertStore(tmp_path).open(STREAM):
        expert.verify()
        assert expert.parts['adapter'] == {} and expert.parts['head']
        assert 'norm' not in expert.parts
    model = heads_only()
    model.load_tasks(tasks, tmp_path)
    for mine, theirs in zip(
            logits(model, toys, *STREAM), logits(taught, toys, *STREAM)):
        assert torch.equal(mine, theirs)


def test_loaded_model_goes_on_learning(taught, heads_only, toys, tmp_path):
    tasks = [toys.task(name) for name in STREAM]
    for task in tasks[:2]:
        taught.save_task(task, tmp_path, {})
    model = heads_only()
    model.load_tasks(tasks[:2], tmp_path)
    toys.learn(model, 'fog', init_from='night')
    assert model.expert_names == STREAM
    assert toys.predict(model, 'fog')[0].expert == 'fog'


def test_costs_are_those_of_the_head(taught, toys, tmp_path):
    for name in STREAM:
        taught.save_task(toys.task(name), tmp_path, {})
    day, *_ = taught.expert_costs(tmp_path)
    head = taught.heads['day'].state
    assert (day['lora_params'], day['norm_params']) == (0, 0)
    assert day['head_params'] == sum(v.numel() for v in head.values())


def test_expert_with_an_adapter_is_refused(heads_only, toys, learned_once):
    model = heads_only()
    with pytest.raises(ValueError, match="'day' .* it has an adapter"):
        model.import_expert(learned_once.export_expert('day'))


def test_expert_without_one_is_refused_where_layers_are_adapted(toys, taught):
    model = toys.model()
    with pytest.raises(ValueError, match="'day' .* it has no adapter"):
        model.import_expert(taught.export_expert('day'))
