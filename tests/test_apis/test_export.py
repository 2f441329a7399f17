# SPDX-License-Identifier: Apache-2.0
"""One expert as a checkpoint of plain MMSegmentation."""
from __future__ import annotations

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from tiny import TINY_MODEL

from mmseg.apis import init_model
from mmseg.models.decode_heads import SegformerHead
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg_mile.apis import export_expert, stock_config
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from mmseg_mile.structures import Task

TASK = Task('fog', ('sky', 'road', 'car'),
            ((70, 130, 180), (128, 64, 128), (0, 0, 142)), {}, {})
TINY_MIT = dict(
    type='MixVisionTransformer',
    embed_dims=8,
    num_layers=[1, 1, 1, 1],
    num_heads=[1, 2, 2, 4],
    sr_ratios=[4, 2, 1, 1],
    init_cfg=dict(type='Pretrained', checkpoint='mit_b0.pth'))


def model_config(kind):
    """A CNN that owns norm statistics, or a transformer with our head."""
    config = copy.deepcopy(TINY_MODEL)
    config['backbone'].update(base_training='none')
    config['gate'] = dict(type='OracleGate')
    config.update(init_from='base', keep_logits=True)
    config['auxiliary_head'] = dict(
        type='FCNHead', in_channels=32, in_index=2, channels=8, num_classes=19)
    if kind == 'transformer':
        config['backbone'].update(backbone=dict(TINY_MIT), train_norm=False)
        config['decode_head'].update(
            type='LevelwiseSegformerHead', in_channels=[8, 16, 16, 32])
        config.update(channels_last=True, predict_dtype='float32')
        config['auxiliary_head']['in_channels'] = 16
    return Config(dict(model=config)).model


def disturb(tensors):
    """Move every value that training would, and keep variances positive."""
    for value in tensors.values():
        if value.is_floating_point():
            value += 0.1 * torch.rand_like(value)


def balance_classes(model):
    """Let no class win everywhere, so that label maps say something."""
    head = model.heads[TASK.name].state
    head['conv_seg.weight'].normal_()
    with model.forced(TASK.name):
        sample, = predict(model, torch.randn(1, 3, 64, 96))
    head['conv_seg.bias'] -= sample.seg_logits.data.mean((1, 2))


@pytest.fixture(scope='module', params=['cnn', 'transformer'])
def trained(request):
    """A model with one expert that differs from the base, and its config."""
    torch.manual_seed(0)
    init_default_scope('mmseg')
    config = model_config(request.param)
    model = MODELS.build(copy.deepcopy(config))
    assert isinstance(model, ExpertSegmentor)
    model.begin_task(TASK, [])
    model.end_task(TASK, [])
    adapter = model.backbone.experts[TASK.name]
    for tensors in (adapter.lora, adapter.norm, model.heads[TASK.name].state):
        disturb(tensors)
    assert bool(adapter.norm) == (request.param == 'cnn')
    balance_classes(model.eval())
    return model, config


@pytest.fixture
def stock(trained, tmp_path):
    """The exported expert, built and loaded by plain MMSegmentation."""
    model, config = trained
    torch.save(export_expert(model, TASK.name), tmp_path / 'fog.pth')
    stock_config(config, model, TASK.name).dump(tmp_path / 'fog.py')
    return init_model(tmp_path / 'fog.py', str(tmp_path / 'fog.pth'), 'cpu')


def predict(model, images):
    size = images.shape[-2:]
    samples = [
        SegDataSample(
            metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size))
        for _ in images
    ]
    with torch.no_grad():
        return model.predict(images, samples)


def test_exported_model_is_a_stock_one(stock):
    assert type(stock).__name__ == 'EncoderDecoder'
    assert type(stock.backbone).__module__.startswith('mmseg.')
    assert type(stock.decode_head) is SegformerHead


def test_export_has_exactly_the_stock_keys(trained, stock):
    model, _ = trained
    state = export_expert(model, TASK.name)['state_dict']
    assert set(state) == set(stock.state_dict())
    stock.load_state_dict(state, strict=True)


def test_exported_model_predicts_what_the_expert_predicts(trained, stock):
    model, _ = trained
    images = torch.randn(2, 3, 64, 96)
    with model.forced(TASK.name):
        mine = predict(model, images)
    theirs = predict(stock, images)
    for expert, exported in zip(mine, theirs):
        torch.testing.assert_close(
            exported.seg_logits.data,
            expert.seg_logits.data,
            rtol=0,
            atol=1e-4)
        assert torch.equal(exported.pred_sem_seg.data,
                           expert.pred_sem_seg.data)
        assert expert.pred_sem_seg.data.unique().numel() > 1


def test_export_differs_from_the_base(trained):
    model, _ = trained
    state = export_expert(model, TASK.name)['state_dict']
    base = model.backbone.base_state()
    changed = [
        key for key, value in base.items()
        if not torch.equal(state[f'backbone.{key}'], value)
    ]
    # Query, key and value of an attention are one tensor in stock.
    layers = {
        target.replace('k_proj', 'q_proj').replace('v_proj', 'q_proj')
        for target in model.backbone.targets
    }
    norms = model.backbone.experts[TASK.name].norm
    moved = [key for key in norms if not key.endswith('tracked')]
    assert len(changed) == len(layers) + len(moved)


def test_export_leaves_the_model_as_it_was(trained):
    model, _ = trained
    before = model.backbone.fingerprint()
    export_expert(model, TASK.name)
    assert model.backbone.fingerprint() == before


def test_changes_of_the_checkpoint_do_not_reach_the_model(trained):
    model, _ = trained
    first = export_expert(model, TASK.name)['state_dict']
    for value in first.values():
        value.zero_()
    second = export_expert(model, TASK.name)['state_dict']
    assert all(second[key].any()
               for key in ('decode_head.conv_seg.weight',
                           'decode_head.fusion_conv.conv.weight'))


def test_classes_and_palette_travel_along(stock):
    assert stock.dataset_meta == dict(
        classes=list(TASK.classes), palette=[list(c) for c in TASK.palette])


def test_export_says_where_it_comes_from(trained):
    model, _ = trained
    meta = export_expert(model, TASK.name)['meta']
    assert meta['expert'] == 'fog'
    assert meta['mixture'] == {'fog': 1.0}
    assert meta['base_fingerprint'] == model.backbone.fingerprint()


def test_stock_config_asks_for_no_download(trained):
    model, config = trained
    stock = stock_config(config, model, TASK.name)
    assert 'init_cfg' not in stock.model.backbone
    assert set(stock) == {'default_scope', 'model'}


def test_stock_config_keeps_the_config_it_came_from(trained):
    model, config = trained
    before = copy.deepcopy(config)
    stock_config(config, model, TASK.name)
    assert config == before


def test_unknown_expert_is_named(trained):
    model, _ = trained
    with pytest.raises(ValueError, match=r"'rain'; experts: \['fog'\]"):
        export_expert(model, 'rain')


def test_stock_config_has_no_field_of_ours(trained):
    model, config = trained
    known = set(stock_config(config, model, TASK.name).model)
    assert known == {
        'type', 'data_preprocessor', 'backbone', 'decode_head', 'test_cfg'
    }


def test_way_of_loading_travels_along(trained):
    model, config = trained
    steps = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
    stock = stock_config(config, model, TASK.name, steps)
    assert stock.test_pipeline == steps
    assert 'custom_imports' not in stock


def test_step_of_ours_is_imported_where_it_can_be(trained):
    model, config = trained
    steps = [dict(type='LoadSingleChannelImage', low=0, high=9)]
    stock = stock_config(config, model, TASK.name, steps)
    assert stock.custom_imports == dict(
        imports=['mmseg_mile'], allow_failed_imports=True)


def test_head_that_stock_mmseg_lacks_is_refused(trained, monkeypatch):
    model, config = trained
    monkeypatch.setitem(model.heads[TASK.name].config, 'type',
                        'OpenVocabularyHead')
    with pytest.raises(ValueError, match='OpenVocabularyHead is a class of'):
        stock_config(config, model, TASK.name)
