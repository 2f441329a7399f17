# SPDX-License-Identifier: Apache-2.0
"""Masks and texts: by hand, and against mmseg's own head."""
from __future__ import annotations

import copy

import pytest
import tiny_san
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData

from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

CLASSES = ('road', 'traffic light', 'sky')
SIZE = (48, 64)


@pytest.fixture(autouse=True)
def mmseg_scope():
    """Losses are looked up in mmseg's registries."""
    init_default_scope('mmseg')


def build(num_classes=3, **options):
    """A head for texts of 16 values, in eval mode."""
    config = dict(tiny_san.HEAD, num_classes=num_classes, **options)
    return MODELS.build(copy.deepcopy(config)).eval()


def samples(*levels):
    """Ground truth: an image per level, the upper half of that class."""
    found = []
    for level in levels:
        labels = torch.zeros(1, *SIZE, dtype=torch.long)
        labels[:, :SIZE[0] // 2] = level
        if level == 255:
            labels[:] = 255
        found.append(
            SegDataSample(
                gt_sem_seg=PixelData(data=labels),
                metainfo=dict(img_shape=SIZE)))
    return found


@torch.no_grad()
def test_label_is_the_text_that_lies_nearest_to_a_mask():
    head = build(2, in_channels=2)
    # road lies along the first axis, sky along the second
    head.name_classes(10 * torch.tensor([[1.0, 0], [0, 1], [-1, -1]]))
    masks = torch.full((1, 2, 2, 1), -9.0)
    masks[0, 0, 0] = masks[0, 1, 1] = 9.0
    embeds = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    inputs = [torch.zeros(1, 2, 1), masks, embeds]
    got = head.predict(inputs, [dict(img_shape=(2, 1))], None)
    # the first mask, above, looks like sky
    assert got.argmax(1).tolist() == [[[1], [0]]]
    assert got[0, 1, 0, 0] == pytest.approx(1.0, abs=1e-3)


@torch.no_grad()
def test_mask_that_shows_no_class_speaks_for_none():
    head = build(2, in_channels=2)
    head.name_classes(10 * torch.tensor([[1.0, 0], [0, 1], [-1, -1]]))
    inputs = [
        torch.zeros(1, 2, 1),
        torch.full((1, 1, 1, 1), 9.0),
        torch.tensor([[[-1.0], [-1.0]]])
    ]
    assert head.predict(inputs, [dict(img_shape=(1, 1))], None).max() < 1e-3


def test_head_without_names_predicts_nothing():
    inputs = [torch.zeros(1, 16, 1)
              ] + [torch.zeros(1, 4, 2, 2),
                   torch.zeros(1, 16, 4)]
    got = build().predict(inputs, [dict(img_shape=(2, 2))], None)
    assert got.isnan().all()


@torch.no_grad()
def test_prediction_is_mmsegs_own():
    san = tiny_san.build_san()
    stock = tiny_san.build_stock(san, CLASSES)
    head = build()
    head.name_classes(san.embed_classes(CLASSES))
    x = torch.randn(2, 3, *SIZE)
    metas = [dict(img_shape=SIZE, ori_shape=SIZE)] * 2
    torch.testing.assert_close(
        head.predict(san(x), metas, None),
        stock.encode_decode(x, metas),
        rtol=1e-4,
        atol=1e-5)


@pytest.mark.parametrize('levels', [(1, 2), (2, 255), (255, 255)])
def test_losses_are_mmsegs_own(levels):
    san = tiny_san.build_san()
    stock = tiny_san.build_stock(san, CLASSES).train()
    head = build().train()
    head.name_classes(san.embed_classes(CLASSES))
    x = torch.randn(2, 3, *SIZE)
    truth = samples(*levels)
    torch.manual_seed(5)
    wanted = stock.loss(x, truth)
    torch.manual_seed(5)
    got = head.loss(san.train()(x), truth, None)
    # mmseg numbers the supervised layer, we count it
    got = {f'decode.{k}'.replace('d0.', 'd1.'): v for k, v in got.items()}
    assert len(got) == 6
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_gradient_reaches_masks_and_embeddings():
    san = tiny_san.build_san().train()
    head = build().train()
    head.name_classes(san.embed_classes(CLASSES))
    inputs = [
        x.detach().requires_grad_() for x in san(torch.randn(1, 3, *SIZE))
    ]
    sum(head.loss(inputs, samples(1), None).values()).backward()
    assert inputs[0].grad is None
    assert all(x.grad.abs().max() > 0 for x in inputs[1:])


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('index', [1, 2])
def test_loss_of_what_is_no_number_is_none(index, value):
    san = tiny_san.build_san().train()
    head = build().train()
    head.name_classes(san.embed_classes(CLASSES))
    inputs = [x.detach() for x in san(torch.randn(1, 3, *SIZE))]
    inputs[index][0, 0, 0] = value
    losses = head.loss(inputs, samples(1), None)
    assert not sum(losses.values()).isfinite()


def test_loss_without_names_is_no_number():
    inputs = [
        torch.zeros(1, 16, 1),
        torch.zeros(1, 4, 2, 2),
        torch.zeros(1, 16, 4)
    ]
    losses = build().loss(inputs, samples(1), None)
    assert sum(losses.values()).isnan()


def test_head_has_no_weights_and_keeps_its_texts():
    head = build()
    assert not list(head.parameters())
    assert {k: tuple(v.shape) for k, v in head.state_dict().items()} == {
        'class_embeds': (4, 16)
    }  # yapf: disable


@pytest.mark.parametrize('own, wanted', [(None, [1, 1, 1, 0.2]),
                                         ([2, 3, 4], [2, 3, 4, 0.2])])
def test_class_weights_get_one_for_no_object(own, wanted):
    loss = dict(
        type='CrossEntropyLoss', loss_name='loss_cls_ce', class_weight=own)
    head = build(no_object_weight=0.2, loss_decode=[loss])
    assert head.loss_decode[0].class_weight == wanted


def test_stock_recipe_is_the_default():
    config = dict(
        type='OpenVocabularyHead',
        in_channels=16,
        num_classes=3,
        align_corners=False)
    head = MODELS.build(config)
    assert head.train_cfg.num_points == 12544
    assert head.loss_decode[0].class_weight == [1, 1, 1, 0.1]
    assert [loss.loss_weight for loss in head.loss_decode] == [2, 5, 5]
