# SPDX-License-Identifier: Apache-2.0
"""Experts as ONNX graphs."""
from __future__ import annotations

import copy
import json

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from tiny import CLASSES, PALETTE, TINY_MODEL, tiny_task
from torch import nn

from mmseg.apis import init_model
from mmseg.registry import MODELS
from mmseg_mile.apis import export_files
from mmseg_mile.apis.export import difference, drawn_images, predict
from mmseg_mile.apis.onnx_export import (SIZE, MatrixPooling, OnnxSegmentor,
                                         supported_sizes,
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


def rgb(images):
    return images[:, [2, 1, 0]]


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
    changed = with_exportable_layers(model)
    kinds = {type(module) for module in changed.modules()}
    assert MatrixPooling in kinds and nn.AdaptiveAvgPool2d not in kinds
    assert nn.AdaptiveAvgPool2d in {type(m) for m in model.modules()}
    mine, theirs = predict(model, images), predict(changed, images)
    assert not difference(mine, theirs, 1e-5)


@pytest.mark.parametrize('preprocessor', [
    {},
    dict(bgr_to_rgb=False),
    dict(bgr_to_rgb=False, mean=[10.0, 20.0, 30.0], std=[50.0, 60.0, 70.0]),
    dict(mean=None, std=None),
])
def test_graph_takes_rgb_and_normalises(preprocessor):
    model = stock(preprocessor)
    bgr = drawn_images(model, 2, (32, 48))
    mine, theirs = predict(model, bgr), OnnxSegmentor(model)(rgb(bgr))
    assert not difference(mine, theirs, 1e-5)
    assert torch.equal(mine[1], theirs[1])


def test_single_output_becomes_foreground_above_the_threshold():
    head = dict(
        TINY_MODEL['decode_head'],
        num_classes=2,
        out_channels=1,
        threshold=0.6,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True))
    model = stock(decode_head=head)
    images = drawn_images(model, 2, (32, 48))
    logits, _ = predict(model, images)
    # so that half of the pixels lie above the threshold
    model.decode_head.conv_seg.bias.data += 0.405 - logits.logit().median()
    _, mine = predict(model, images)
    _, labels = OnnxSegmentor(model)(rgb(images))
    assert torch.equal(labels, mine)
    assert 0.2 < labels.float().mean() < 0.8


def test_padding_that_a_graph_would_leave_out_is_refused():
    model = stock(dict(test_cfg=dict(size_divisor=32)))
    with pytest.raises(ValueError, match='data_preprocessor.test_cfg pads'):
        OnnxSegmentor(model)


@pytest.mark.parametrize('right, only, expected', [
    (lambda h, w: True, None, 'any size'),
    (lambda h, w: h % 32 == w % 32 == 0, None,
     'height and width multiples of 32'),
    (lambda h, w: (h, w) == (70, 90), (70, 90), '70 x 90 pixels'),
])
def test_sizes_are_those_where_the_graph_is_right(right, only, expected):
    words = supported_sizes(lambda s: '' if right(*s) else 'far', only)
    assert words == expected


@pytest.mark.parametrize('right, only, match', [
    (lambda size: size == SIZE, None, 'right at one size .*: far.*--size H W'),
    (lambda size: False, None, 'wrong for a single image: far'),
    (lambda size: False, (70, 90), 'wrong for a single image: far'),
])
def test_graph_that_is_wrong_is_refused(right, only, match):
    with pytest.raises(ValueError, match=match):
        supported_sizes(lambda s: '' if right(s) else 'far', only)


# -- whole graphs --------------------------------------------------------


@pytest.fixture(scope='module')
def export(pristine, tmp_path_factory, quick):
    """``export(kind, experts, ...)``: library, config, report and session."""
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(name)
    import onnxruntime

    def call(kind, experts, **settings):
        library = pristine(kind)
        tasks = [dict(tiny_task('day'), name=name) for name in MIXTURE]
        cfg = Config(
            dict(
                model=copy.deepcopy(library.config),
                train_cfg=dict(tasks=tasks)))
        # what the model slides is left to the caller
        cfg.model.test_cfg = dict(
            mode='slide', crop_size=(64, 64), stride=(9, 9))
        out = tmp_path_factory.mktemp('graph') / 'a.onnx'
        with quick():
            made = export_files(library.store.root, out, experts, cfg,
                                **settings)
        session = onnxruntime.InferenceSession(
            str(out), providers=['CPUExecutionProvider'])
        return library, cfg, made, session

    return call


@pytest.fixture(scope='module')
def graph(export):
    """The graph of a mixture, its sizes open."""
    return export('cnn', MIXTURE)


@pytest.mark.parametrize('count, size', [(1, (32, 32)), (3, (61, 87))])
def test_graph_predicts_what_stock_mmseg_predicts(graph, tmp_path, quick,
                                                  count, size):
    library, cfg, _, session = graph
    with quick():
        made = export_files(library.store.root, tmp_path / 'a.pth', MIXTURE,
                            cfg)
    model = init_model(*map(str, reversed(made.files)), 'cpu')
    model.test_cfg = ConfigDict(mode='whole')
    images = drawn_images(model, count, size)
    theirs = session.run(['logits', 'labels'], dict(image=rgb(images).numpy()))
    mine, theirs = predict(model, images), [*map(torch.from_numpy, theirs)]
    assert not difference(mine, theirs, 1e-4)
    assert (mine[1] != theirs[1]).float().mean() < 0.001


def test_graph_says_what_it_is(graph):
    library, _, made, session = graph
    file, = made.files
    # nothing else is left
    assert list(file.parent.iterdir()) == [file]
    assert 'any size' in made.notes[0]
    assert 'predicts one window' in made.notes[1]
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
    # names of the axes
    image, = session.get_inputs()
    assert image.name == 'image'
    assert image.shape == ['batch', 3, 'height', 'width']
    logits, labels = session.get_outputs()
    assert (logits.name, labels.name) == ('logits', 'labels')
    assert labels.shape == ['batch', 'height', 'width']


def test_graph_of_one_size(export):
    *_, session = export('mit', MIXTURE, size=(64, 96))
    assert session.get_inputs()[0].shape[2:] == [64, 96]
    facts = session.get_modelmeta().custom_metadata_map
    assert facts['sizes'] == '64 x 96 pixels'
