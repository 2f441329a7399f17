# SPDX-License-Identifier: Apache-2.0
"""CaRE learns, keeps and predicts tasks."""
from __future__ import annotations

import copy

import pytest
import torch
from tiny import (DAY, DUSK, NIGHT, Task, batch_of, learn_task, loader_of,
                  predict, train)
from tiny_care import BACKBONES, PAPER, care, care_config

from mmseg.registry import MODELS
from mmseg_mile.library.expert_store import ExpertStore

TASKS = (DAY, NIGHT, DUSK)
SETTINGS = dict(ahead={}, regions=dict(regions=(2, 2)), paper=PAPER)


def learned(tasks=TASKS, kind='vit', **settings):
    model = care(kind, **settings)
    for task in tasks:
        learn_task(model, task)
    return model


@pytest.fixture(scope='module')
def stored(tmp_path_factory):
    """A model of three tasks, and its library; look, do not touch."""
    folder = tmp_path_factory.mktemp('care') / 'library'
    model = learned()
    for task in TASKS:
        model.save_task(task, folder, {})
    return model, folder


@pytest.mark.parametrize('kind', BACKBONES)
def test_keys_and_outputs_of_the_stock_backbone_stay(kind):
    model = care(kind).eval()
    stock = MODELS.build(BACKBONES[kind])
    stock.load_state_dict(model.backbone.backbone.state_dict(), strict=True)
    # some of mmseg's backbones return None from eval()
    stock.eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for mine, theirs in zip(model.backbone(x), stock(x)):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', BACKBONES)
def test_each_backbone_learns_and_its_experts_act(kind):
    model = learned((DAY, NIGHT), kind, regions=(2, 1))
    before = predict(model, NIGHT)
    for layer in model.backbone.moe:
        layer._stack('up')[1].add_(1.0)
    assert not torch.allclose(predict(model, NIGHT), before)


@pytest.mark.parametrize('name', SETTINGS)
def test_fresh_expert_of_the_base_changes_nothing(name):
    settings = dict(SETTINGS[name], init_from='base')
    model = care('vit', **settings).eval()
    images = model.data_preprocessor(batch_of(DAY, 5), False)['inputs']
    with torch.no_grad():
        base = model.backbone(images)
        model.begin_task(DAY, loader_of(DAY))
        plan = model.backbone.plan(images)
        with model.backbone.using(plan):
            fresh = model.backbone(images)
    assert all(map(torch.equal, base, fresh))


@pytest.mark.parametrize('name', SETTINGS)
def test_forced_prediction_of_a_task_survives_later_tasks(name):
    model = learned((DAY, ), **SETTINGS[name])
    first = predict(model, DAY)
    learn_task(model, NIGHT)
    with model.visible(['day', 'night']):
        second = predict(model, NIGHT)
    learn_task(model, DUSK)
    with model.forced('day'):
        assert torch.equal(predict(model, DAY), first)
    with model.visible(['day', 'night']):
        assert torch.equal(predict(model, NIGHT), second)


def test_base_and_shared_expert_train_on_the_first_task_only():
    model = care(base_training='first_task')
    prints = [model.backbone.fingerprint()]
    for task in TASKS[:2]:
        learn_task(model, task)
        prints.append(model.backbone.fingerprint())
    assert prints[0] != prints[1] == prints[2]
    model.begin_task(DUSK, loader_of(DUSK))
    model.train()
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all('.new.' in n or n.startswith('decode_head.') for n in names)
    # without dropout of what is frozen
    assert not model.backbone.backbone.training


def test_images_go_to_the_head_of_their_task(stored):
    model, _ = stored
    for task in (DAY, NIGHT):
        samples = model.test_step(batch_of(task, 5))
        for sample in samples:
            assert sample.expert in (('night', ) if task is NIGHT else
                                     ('day', 'dusk'))
            assert sum(sample.mixture.values()) == pytest.approx(1)
            assert set(sample.distances) == {'day', 'night', 'dusk'}


def test_routing_stats_tell_shares_per_block(stored):
    model, _ = stored
    model.routing_stats()
    model.test_step(batch_of(NIGHT, 5))
    layers = model.routing_stats()['layers']
    assert len(layers) == len(model.backbone.moe)
    for layer in layers:
        assert sum(layer['relevant'].values()) == pytest.approx(1, abs=1e-4)
        assert sum(layer['load'].values()) == pytest.approx(1, abs=1e-4)
    assert model.routing_stats() == {}


@pytest.mark.parametrize('name', SETTINGS)
def test_library_gives_the_model_back(name, tmp_path):
    model = learned(**SETTINGS[name])
    for task in TASKS:
        model.save_task(task, tmp_path, {})
    again = care(**SETTINGS[name])
    again.load_tasks(TASKS[:1], tmp_path)
    again.load_tasks(TASKS[1:], tmp_path)
    for task in TASKS:
        assert torch.equal(predict(again, task), predict(model, task))
    other = Task('fog', DAY.classes, DAY.palette, {}, {})
    learn_task(again, other)
    assert again.expert_names == ('day', 'night', 'dusk', 'fog')


def test_removed_expert_is_missed_by_those_that_score_it(stored, tmp_path):
    model, _ = stored
    for task in TASKS:
        model.save_task(task, tmp_path, {})
    store = ExpertStore(tmp_path)
    kept = store.load('day')
    store.remove('night')
    with pytest.raises(ValueError, match="'dusk' scores expert 'night'"):
        care().load_tasks((DAY, DUSK), tmp_path)
    store.remove('dusk')
    again = care()
    again.load_tasks((DAY, ), tmp_path)
    assert all(
        torch.equal(value,
                    store.load('day').parts[part][key])
        for part, tensors in kept.parts.items()
        for key, value in tensors.items())
    with model.forced('day'):
        assert torch.equal(predict(again, DAY), predict(model, DAY))


def test_exchanged_member_of_a_pool_is_refused(stored, tmp_path):
    model, _ = stored
    for task in TASKS:
        model.save_task(task, tmp_path, {})
    other = learned((DAY, ))
    learn_task(other, NIGHT, num_steps=1)
    other.save_task(NIGHT, tmp_path, {})
    with pytest.raises(ValueError, match="'night', which is another one"):
        care().load_tasks(TASKS, tmp_path)


def test_perceptrons_of_the_paper_learn():
    model = care(**PAPER)
    model.begin_task(DAY, loader_of(DAY))
    first = train(model, DAY, 1)['loss']
    assert first.isfinite()
    before = copy.deepcopy(dict(model.backbone.moe[0].new.items()))
    train(model, DAY, 2)
    after = model.backbone.moe[0].new
    assert not torch.equal(before['perceptron'], after['perceptron'])


def test_entropy_refuses_a_task_of_one_class():
    task = Task('one', ('road', ), ((1, 1, 1), ), {}, {})
    with pytest.raises(ValueError, match="'one' has one class.*'presence'"):
        care(**PAPER).check_stream([DAY, task])
    care(**dict(PAPER, relevance='presence')).check_stream([DAY, task])


@pytest.mark.parametrize('changes, message', [
    (dict(mode='inline'), "perceptron='slda' is fitted"),
    (dict(perceptron='learned'), "perceptron='learned' reads"),
    (dict(relevance='entropy'), "relevance='entropy' is of learned"),
    (dict(mode='later'), r"backbone.mode must be one of \('ahead'"),
    (dict(combine='mean'), 'backbone.combine must be one of'),
    (dict(top_routers=0), 'backbone.top_routers must be at least 1, got 0'),
    (dict(scale=0), r'backbone.scale must be in \(0, 1\], got 0'),
    (dict(first_block=1), r'backbone.first_block must be in \[0, 1\)'),
    (dict(regions=(2, 0)), r'backbone.regions must be \(rows, columns\)'),
    (dict(pool=-1), 'backbone.pool must be at least 0, got -1'),
    (dict(init_from='last'), 'model.init_from must be one of'),
])  # yapf: disable
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        care(**changes)


def test_parts_that_do_not_fit_are_refused():
    config = care_config()
    config.backbone.backbone = dict(type='ResNetV1c', depth=18)
    with pytest.raises(ValueError, match='ResNetV1c has no block with an FFN'):
        MODELS.build(config)
    config = care_config(regions=(2, 2))
    config.test_cfg = dict(mode='slide', crop_size=(16, 16), stride=(16, 16))
    with pytest.raises(ValueError, match="set test_cfg.mode='whole'"):
        MODELS.build(config)
    config = care_config('mit')
    config.backbone.backbone.with_cp = True
    with pytest.raises(ValueError, match='with_cp=True would run'):
        MODELS.build(config)
