# SPDX-License-Identifier: Apache-2.0
"""Whose way of loading images is taken, and what may be changed."""
from __future__ import annotations

import pytest
from mmengine.config import Config

from mmseg_mile.apis.library_model import (build_model, change_config,
                                           choose_way, config_and_ways,
                                           known_experts)

RGB, THERMAL = [dict(type='A')], [dict(type='B')]
MIXED = dict(day=RGB, night=RGB, thermal=THERMAL)


@pytest.mark.parametrize(
    'ways, task, expert, expected',
    [
        (dict(day=RGB, night=RGB), None, None, RGB),
        (MIXED, 'thermal', None, THERMAL),
        (MIXED, None, 'thermal', THERMAL),
        # what is asked for goes before what is guessed
        (MIXED, 'day', 'thermal', RGB),
        # a merged expert has no way of its own
        (dict(day=RGB), None, 'merged', RGB),
    ])
def test_way_of_loading(ways, task, expert, expected):
    assert choose_way(ways, task, expert) is expected


@pytest.mark.parametrize('task, expert, match', [
    (None, None, 'do not load their images in one way'),
    (None, 'merged', 'do not load their images in one way'),
    ('merged', None, "task must be one of .'day', 'night', 'thermal'"),
])
def test_way_that_cannot_be_known_is_asked_for(task, expert, match):
    with pytest.raises(ValueError, match=match):
        choose_way(MIXED, task, expert)


def test_config_of_the_user_gives_the_ways_of_its_tasks():
    steps = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    tasks = [dict(name='day', val_dataset=dict(pipeline=steps))]
    given = Config(dict(model=dict(a=1), train_cfg=dict(tasks=tasks)))
    cfg, ways = config_and_ways([], config=given)
    cfg.model.a = 2
    assert given.model.a == 1
    assert list(ways) == ['day'] and len(ways['day']) == 1


def test_options_are_set():
    cfg = Config(dict(model=dict(gate=dict(top_k=1))))
    change_config(cfg, {'model.gate.top_k': 3}, None, 'base', 'logits')
    assert cfg.model == dict(
        gate=dict(top_k=3), ood_policy='base', fusion='logits')


def test_option_without_an_effect_is_refused():
    cfg = Config(dict(model=dict()))
    with pytest.raises(ValueError, match="'optim_wrapper.lr' has no effect"):
        change_config(cfg, {'optim_wrapper.lr': 1}, None, None, None)


@pytest.mark.parametrize('options, vocabulary',
                         [({}, ['road']), ({
                             'model.vocabulary': ['road']
                         }, None)])
def test_vocabulary_is_for_those_who_have_texts(options, vocabulary):
    cfg = Config(dict(model=dict(type='ExpertSegmentor')))
    with pytest.raises(
            ValueError, match=r"vocabulary \['road'\] has no effect"):
        change_config(cfg, options, None, None, None, vocabulary)
    cfg.model.type = 'OpenVocabularyExpertSegmentor'
    change_config(cfg, options, None, None, None, vocabulary)
    assert cfg.model.vocabulary == ['road']


def test_experts_keep_the_order_that_was_asked_for():
    assert known_experts(['b', 'a', 'b'], ['a', 'b', 'c']) == ['b', 'a']
    with pytest.raises(ValueError, match="unknown expert 'd'"):
        known_experts(['a', 'd'], ['a'])
    with pytest.raises(ValueError, match='no expert to predict with'):
        known_experts([], ['a'])


def test_device_that_is_not_there_is_named(cnn):
    cfg = Config(dict(model=cnn.config))
    experts = cnn.store.open(cnn.store.names)
    with pytest.raises(ValueError, match="device 'cuda:77' cannot be used"):
        build_model(cfg, cnn.store, experts, 'cuda:77')


def test_base_that_does_not_fit_is_refused(cnn):
    cfg = Config(dict(model=cnn.config))
    cfg.model.backbone.backbone.base_channels = 4
    with pytest.raises(ValueError, match='does not fit'):
        build_model(cfg, cnn.store, [], 'cpu')
