# SPDX-License-Identifier: Apache-2.0
"""The pipeline that is taken, the options, and the model of a library."""
from __future__ import annotations

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config

from mmseg_mile.apis.library_model import (build_model, change_config,
                                           choose_pipeline,
                                           config_and_pipelines, known_experts,
                                           library_config, read_config,
                                           read_pipelines, set_pretrained)
from mmseg_mile.library.edits import merge_experts, rename_expert
from mmseg_mile.library.expert_store import ExpertStore

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
RGB, THERMAL = [dict(type='A')], [dict(type='B')]
MIXED = dict(day=RGB, night=RGB, thermal=THERMAL)


def test_config_in_pure_python_is_that_in_text(tmp_path):
    same = ('stream = dict(size=(2, 1), steps=[dict(type={step})])\n'
            'optim_wrapper = dict(type={wrapper}, optimizer=dict(lr=1.0))\n')
    text, pure = tmp_path / 'text.py', tmp_path / 'pure.py'
    text.write_text(
        same.format(step="'PackSegInputs'", wrapper="'OptimWrapper'"))
    pure.write_text('from mmengine.optim import OptimWrapper\n'
                    'from mmseg.datasets.transforms import PackSegInputs\n' +
                    same.format(step='PackSegInputs', wrapper='OptimWrapper'))
    options = {'optim_wrapper.optimizer.lr': 0.5}
    found = read_config(pure, options)
    assert found.to_dict() == read_config(text, options).to_dict()
    assert found.optim_wrapper == dict(
        type='OptimWrapper', optimizer=dict(lr=0.5))
    assert found.filename == str(pure)


@pytest.mark.parametrize(
    'pipelines, task, expert, expected',
    [
        (dict(day=RGB, night=RGB), None, None, RGB),
        (MIXED, 'thermal', None, THERMAL),
        (MIXED, None, 'thermal', THERMAL),
        # what is asked for goes before what is guessed
        (MIXED, 'day', 'thermal', RGB),
        # a merged expert has no pipeline of its own
        (dict(day=RGB), None, 'merged', RGB),
    ])
def test_pipeline_that_is_taken(pipelines, task, expert, expected):
    assert choose_pipeline(pipelines, task, expert) is expected


@pytest.mark.parametrize('task, expert, match', [
    (None, None, "pipelines of .'day', 'night', 'thermal'. differ"),
    (None, 'merged', 'differ'),
    ('merged', None, "task must be one of .'day', 'night', 'thermal'"),
])
def test_pipeline_that_cannot_be_known_is_asked_for(task, expert, match):
    with pytest.raises(ValueError, match=match):
        choose_pipeline(MIXED, task, expert)


def test_each_expert_has_the_pipeline_that_it_was_trained_with(made, tmp_path):
    root = shutil.copytree(made.root, tmp_path / 'library')
    rename_expert(root, 'day', 'noon')
    merge_experts(root, ['noon', 'night'], 'merged')
    store = ExpertStore(root)
    found = read_pipelines(store.open(store.names))
    # a merged one was not trained
    assert list(found) == ['noon', 'night']
    assert [step['type'] for step in found['noon']
            ] == ['LoadImageFromFile', 'Resize', 'PackSegInputs']


def test_first_config_that_there_is_is_taken():

    def expert(name, **provenance):
        return SimpleNamespace(name=name, provenance=provenance)

    merged = expert('merged', merged_from=[])
    others = [expert(n, config=dict(model=n)) for n in ('day', 'fog')]
    assert library_config([merged, *others]).model == 'day'
    with pytest.raises(ValueError, match="'merged'.* as config"):
        library_config([merged])


def test_config_of_the_user_gives_the_pipelines_of_its_tasks():
    steps = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    tasks = [dict(name='day', val_dataset=dict(pipeline=steps))]
    given = Config(dict(model=dict(a=1), train_cfg=dict(tasks=tasks)))
    cfg, pipelines = config_and_pipelines([], config=given)
    cfg.model.a = 2
    assert given.model.a == 1
    assert list(pipelines) == ['day'] and len(pipelines['day']) == 1


def test_options_are_set():
    cfg = Config(dict(model=dict(gate=dict(top_k=1), fusion='weights')))
    change_config(
        cfg, {'model.gate.top_k': 3},
        ood_policy='base',
        fusion=None,
        vocabulary=['road'])
    assert cfg.model == dict(
        gate=dict(top_k=3),
        fusion='weights',
        ood_policy='base',
        vocabulary=['road'])


@pytest.mark.parametrize('options, model, match', [
    ({
        'optim_wrapper.lr': 1
    }, {}, "'optim_wrapper.lr' has no effect"),
    ({}, dict(expert='day', fusion='logits'), 'fusion has no effect'),
    ({}, dict(expert='day', ood_policy='base'), 'ood_policy has no effect'),
])
def test_option_without_an_effect_is_refused(options, model, match):
    with pytest.raises(ValueError, match=match):
        change_config(Config(dict(model=dict())), options, **model)


def test_experts_keep_the_order_that_was_asked_for():
    assert known_experts(['b', 'a', 'b'], ['a', 'b', 'c']) == ['b', 'a']
    with pytest.raises(ValueError, match="unknown expert 'd'"):
        known_experts(['a', 'd'], ['a'])
    with pytest.raises(ValueError, match='no expert to predict with'):
        known_experts([], ['a'])


def test_model_has_the_experts_that_are_named_and_asks_for_no_weights(cnn):
    config = copy.deepcopy(cnn.config)
    absent = dict(type='Pretrained', checkpoint='nowhere.pth')
    config['backbone']['backbone']['init_cfg'] = absent
    cfg = Config(dict(model=config))
    model = build_model(cfg, cnn.store, cnn.store.open(['fog', 'day']), 'cpu')
    assert model.expert_names == ('fog', 'day')
    assert not model.training
    assert cfg.model.backbone.backbone.init_cfg == absent


@pytest.mark.parametrize('device, changes, match', [
    ('cuda:77', {}, "device 'cuda:77' cannot be used"),
    ('cpu', {
        'model.backbone.backbone.base_channels': 4
    }, "does not fit the config, whose model.type is 'ExpertSegmentor'"),
    ('cpu', {
        'model.gate.type': 'NoGate'
    }, 'cannot be built'),
])
def test_model_that_cannot_be_is_explained(cnn, device, changes, match):
    cfg = Config(dict(model=cnn.config))
    cfg.merge_from_dict(changes)
    with pytest.raises(ValueError, match=match):
        build_model(cfg, cnn.store, cnn.store.open(['day']), device)


# -- other pretrained weights --------------------------------------------


def pretrained(**backbone):
    return dict(
        type='ResNet',
        init_cfg=dict(type='Pretrained', checkpoint='old'),
        **backbone)


@pytest.mark.parametrize('depth', [0, 1, 2])
def test_weights_of_the_innermost_backbone_are_replaced(depth):
    backbone = pretrained()
    for _ in range(depth):
        backbone = dict(type='Wrapper', backbone=backbone)
    cfg = Config(dict(model=dict(backbone=backbone)))
    # an address is taken as it is
    set_pretrained(cfg, 'mmcls://mobilenet_v2')
    inner = cfg.model.backbone
    for _ in range(depth):
        assert 'init_cfg' not in inner
        inner = inner.backbone
    assert inner.init_cfg.checkpoint == 'mmcls://mobilenet_v2'


@pytest.mark.parametrize('model, path, match', [
    (None, 'a://b', '^model.init_cfg must name'),
    (dict(type='X'), 'a://b', '^model.init_cfg must name'),
    (dict(backbone=dict(type='X')), 'a://b', '^model.backbone.init_cfg must'),
    (dict(backbone=dict(backbone=dict(init_cfg=None))), 'a://b',
     '^model.backbone.backbone.init_cfg must'),
    (dict(backbone=dict(init_cfg=[dict(type='Kaiming')])), 'a://b',
     '^model.backbone.init_cfg must'),
    (dict(backbone=pretrained()), 'absent.pth', "'absent.pth' do not exist"),
])  # yapf: disable
def test_weights_that_cannot_be_replaced_are_named(model, path, match):
    with pytest.raises(ValueError, match=match):
        set_pretrained(Config(dict(model=model)), path)


@pytest.mark.parametrize('name', [
    'mile/mobilenet_v2_camvid_idd.py',
    'baselines/fine_tune_mobilenet_v2_camvid_idd.py'])  # yapf: disable
def test_configs_of_the_project_take_weights(tmp_path, name):
    cfg = Config.fromfile(CONFIGS / name)
    weights = tmp_path / 'weights.pth'
    weights.write_bytes(b'')
    set_pretrained(cfg, str(weights))
    assert str(weights) in str(cfg.model)
