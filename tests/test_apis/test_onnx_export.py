# SPDX-License-Identifier: Apache-2.0
"""Experts as ONNX graphs."""
from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from tiny import CLASSES, PALETTE, TINY_MODEL, tiny_task
from torch import nn

from mmseg.registry import MODELS
from mmseg_mile.apis import export_files
from mmseg_mile.apis.export_check import (drawn_images, mixed_output,
                                          stock_output)
from mmseg_mile.apis.onnx_export import (MatrixPooling, OnnxSegmentor,
                                         with_exportable_layers)

MIXTURE = {'day': 0.5, 'night': 0.3, 'fog': 0.2}
TINY_SWIN = dict(
    type='SwinTransformer',
    embed_dims=8,
    depths=[2, 2],
    num_heads=[1, 2],
    strides=(4, 2),
    out_indices=(0, 1),
    window_size=7)


def stock(preprocessor=(), **parts):
    """A tiny model of plain mmseg with weights that can be told apart."""
    init_default_scope('mmseg')
    head = dict(TINY_MODEL['decode_head'], num_classes=3)
    config = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(TINY_MODEL['data_preprocessor'],
                               **dict(preprocessor)),
        backbone=dict(TINY_MODEL['backbone']['backbone']),
        decode_head=head,
        test_cfg=dict(mode='whole'))
    config.update(parts)
    model = MODELS.build(ConfigDict(copy.deepcopy(config))).eval()
    for value in model.parameters():
        value.data += 0.05 * torch.randn_like(value)
    return model


def swin():
    """With windows to join, and pooling in more than one bin."""
    return stock(
        backbone=TINY_SWIN,
        decode_head=dict(
            type='UPerHead',
            in_channels=[8, 16],
            in_index=[0, 1],
            pool_scales=(1, 2, 3),
            channels=8,
            num_classes=3,
            norm_cfg=dict(type='BN'),
            align_corners=False))


@pytest.mark.parametrize('shape', [(6, 9), (7, 5), (2, 1)])
@pytest.mark.parametrize('size', [1, 3, (2, 4), (None, 2)])
def test_pooling_is_that_of_torch(shape, size):
    x = torch.randn(2, 4, *shape)
    torch.testing.assert_close(
        MatrixPooling(size)(x),
        nn.AdaptiveAvgPool2d(size)(x))


@pytest.mark.parametrize('count, size', [(1, (64, 96)), (3, (50, 71))])
def test_layers_put_in_place_change_nothing(count, size):
    model = swin()
    images = drawn_images(model, count, size)
    mine = stock_output(model, images)
    changed = with_exportable_layers(model)
    kinds = {type(module) for module in changed.modules()}
    assert MatrixPooling in kinds and nn.AdaptiveAvgPool2d not in kinds
    theirs = stock_output(changed, images)
    torch.testing.assert_close(theirs.logits, mine.logits)
    assert nn.AdaptiveAvgPool2d in {type(m) for m in model.modules()}


@pytest.mark.parametrize('preprocessor', [
    {},
    dict(bgr_to_rgb=False),
    dict(bgr_to_rgb=False, mean=[10.0, 20.0, 30.0], std=[50.0, 60.0, 70.0]),
    dict(mean=None, std=None),
])
def test_graph_takes_rgb_and_normalises(preprocessor):
    model = stock(preprocessor)
    bgr = drawn_images(model, 2, (32, 48))
    mine = stock_output(model, bgr)
    logits, labels = OnnxSegmentor(model)(bgr[:, [2, 1, 0]])
    torch.testing.assert_close(logits, mine.logits)
    assert torch.equal(labels, mine.labels)


def test_single_output_becomes_foreground_above_the_threshold():
    head = dict(
        TINY_MODEL['decode_head'],
        num_classes=2,
        out_channels=1,
        threshold=0.6,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True))
    model = stock(decode_head=head)
    images = drawn_images(model, 2, (32, 48))
    logits = stock_output(model, images).logits
    # so that half of the pixels lie above the threshold
    model.decode_head.conv_seg.bias.data += 0.405 - logits.logit().median()
    mine = stock_output(model, images)
    _, labels = OnnxSegmentor(model)(images[:, [2, 1, 0]])
    assert torch.equal(labels, mine.labels)
    assert 0.2 < labels.float().mean() < 0.8


def test_padding_that_a_graph_would_leave_out_is_refused():
    model = stock(dict(test_cfg=dict(size_divisor=32)))
    with pytest.raises(ValueError, match='data_preprocessor.test_cfg pads'):
        OnnxSegmentor(model)


@pytest.fixture(scope='module')
def onnxruntime():
    pytest.importorskip('onnx')
    pytest.importorskip('onnxscript')
    return pytest.importorskip('onnxruntime')


@pytest.fixture(scope='module', params=['cnn', 'mit'])
def graph(request, onnxruntime, pristine, tmp_path_factory):
    """A mixture's graph, its library, and what was said of it."""
    library = pristine(request.param)
    tasks = [dict(tiny_task('day'), name=name) for name in MIXTURE]
    cfg = Config(dict(model=library.config, train_cfg=dict(tasks=tasks)))
    # what the model slides is left to the caller
    cfg.model.test_cfg = dict(mode='slide', crop_size=(64, 64), stride=(9, 9))
    out = tmp_path_factory.mktemp('graph') / 'mix.onnx'
    made = export_files(library.store.root, out, MIXTURE, cfg)
    session = onnxruntime.InferenceSession(
        str(out), providers=['CPUExecutionProvider'])
    return library, made, session


@pytest.mark.parametrize('count, size', [(1, (32, 32)), (3, (61, 87))])
def test_graph_predicts_what_the_mixture_predicts(graph, monkeypatch, count,
                                                  size):
    library, _, session = graph
    monkeypatch.setattr(library.model, 'keep_logits', True)
    images = drawn_images(library.model, count, size)
    mine = mixed_output(library.model, MIXTURE, images)
    logits, labels = session.run(['logits', 'labels'],
                                 dict(image=images[:, [2, 1, 0]].numpy()))
    scale = float(mine.logits.abs().max())
    np.testing.assert_allclose(
        logits, mine.logits.numpy(), rtol=0, atol=1e-4 * scale)
    assert (labels == logits.argmax(1)).all()
    assert (labels == mine.labels.numpy()).mean() > 0.999


def test_graph_is_all_that_is_left(graph):
    _, made, _ = graph
    file, = made.files
    assert list(file.parent.iterdir()) == [file]
    assert made.difference.within(1e-4)
    assert 'any size' in made.notes[0]
    assert 'predicts one window' in made.notes[1]


def test_graph_says_what_it_is(graph):
    library, _, session = graph
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts['classes']) == list(CLASSES)
    assert json.loads(facts['palette']) == [list(c) for c in PALETTE]
    assert json.loads(facts['mixture']) == pytest.approx(MIXTURE)
    assert facts['expert'] == 'day'
    assert facts['base_fingerprint'] == library.store.base_fingerprint
    assert json.loads(facts['mean']) == json.loads(facts['std']) == [127.5] * 3
    assert facts['sizes'] == 'any size'
    assert 'RGB' in facts['input']
    assert json.loads(facts['test_cfg'])['crop_size'] == [64, 64]
    assert json.loads(facts['pipeline'])[0]['type'] == 'LoadImageFromFile'


def test_names_of_the_axes_can_be_read(graph):
    _, _, session = graph
    image, = session.get_inputs()
    assert image.name == 'image'
    assert image.shape == ['batch', 3, 'height', 'width']
    logits, labels = session.get_outputs()
    assert (logits.name, labels.name) == ('logits', 'labels')
    assert labels.shape == ['batch', 'height', 'width']


def test_graph_of_one_size(onnxruntime, pristine, tmp_path):
    library = pristine('cnn')
    cfg = Config(
        dict(
            model=library.config,
            train_cfg=dict(tasks=[dict(tiny_task('day'), name='day')])))
    out = tmp_path / 'day.onnx'
    made = export_files(library.store.root, out, 'day', cfg, size=(40, 56))
    assert made.difference.images == '2 drawn images (40 x 56 pixels)'
    session = onnxruntime.InferenceSession(
        str(out), providers=['CPUExecutionProvider'])
    assert session.get_inputs()[0].shape[2:] == [40, 56]
    facts = session.get_modelmeta().custom_metadata_map
    assert facts['sizes'] == '40 x 56 pixels'
