# SPDX-License-Identifier: Apache-2.0
"""Predictions are mmseg's own, up to rounding and ties."""
from __future__ import annotations

import copy

import pytest
import torch
from mmengine.config import ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from mmseg.models import EncoderDecoder
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.structures import SegDataSample
from mmseg_mile.methods import prediction
from mmseg_mile.methods.prediction import CoarseEncoderDecoder, label_map

SIZE = (36, 50)
SLIDE = dict(mode='slide', crop_size=(24, 24), stride=(20, 20))
PADDED = dict(img_shape=(32, 47), img_padding_size=[1, 2, 4, 0])
METAS = dict(
    plain=dict(),
    other_size=dict(ori_shape=(45, 61)),
    padded=dict(PADDED, pad_shape=SIZE),
    padded_by_the_pipeline=dict(padding_size=[0, 3, 0, 5]),
    no_padding=dict(padding_size=[0, 0, 0, 0]),
    horizontal=dict(flip=True, flip_direction='horizontal'),
    vertical=dict(flip=True, flip_direction='vertical'),
    not_flipped=dict(flip=False, flip_direction='horizontal'),
    both=dict(PADDED, pad_shape=SIZE, flip=True, flip_direction='vertical'))


class ShiftingHead(BaseDecodeHead):
    """Changes its logits after the forward."""

    def forward(self, inputs):
        """As a plain head."""
        return self.cls_seg(inputs[self.in_index])

    def predict_by_feat(self, seg_logits, batch_img_metas):
        """Add one."""
        return super().predict_by_feat(seg_logits, batch_img_metas) + 1


class QueryHead(nn.Module):
    """No decode head of mmseg's at all, as Mask2Former's is none."""

    align_corners, num_classes, out_channels = False, 3, 3

    def predict(self, inputs, batch_img_metas, test_cfg):
        """Give logits of the size asked for."""
        size = tuple(batch_img_metas[0]['img_shape'])
        return F.interpolate(inputs[1][:, :3], size, mode='bilinear')


@pytest.fixture
def build(toys):
    """``build(test_cfg, **head)``: the model, with features of half size."""

    def make(test_cfg=None, outputs=3, **head):
        head = dict(
            toys.config['decode_head'],
            num_classes=max(2, outputs),
            out_channels=outputs,
            **head)
        if outputs == 1:
            head.update(threshold=0.4)
        backbone = dict(
            toys.config['backbone']['backbone'], norm_cfg=dict(type='BN'))
        model = CoarseEncoderDecoder(
            backbone=ConfigDict(backbone, strides=(2, 1)),
            decode_head=ConfigDict(head),
            data_preprocessor=ConfigDict(toys.config['data_preprocessor']),
            test_cfg=ConfigDict(test_cfg or dict(mode='whole')),
            keep_logits=True).eval()
        nn.init.normal_(model.decode_head.conv_seg.weight)
        return model

    return make


def samples(**changes) -> list[SegDataSample]:
    """Data samples of two images as a test pipeline packs them."""
    meta = dict(ori_shape=SIZE, img_shape=SIZE, img_path='a.png')
    return [SegDataSample(metainfo={**meta, **changes}) for _ in range(2)]


@torch.no_grad()
def both(model, data_samples) -> list[list[SegDataSample]]:
    """What the model predicts, and what stock mmseg makes of its network."""
    images, given = torch.randn(2, 3, *SIZE), copy.deepcopy(data_samples)
    mine = model.predict(images, data_samples)
    model.__class__ = EncoderDecoder
    theirs = model.predict(images, given)
    model.__class__ = CoarseEncoderDecoder
    return [mine, theirs]


def assert_same(mine, theirs) -> None:
    """Compare labels exactly, logits up to rounding."""
    for got, wanted in zip(mine, theirs):
        labels, logits = got.pred_sem_seg.data, got.seg_logits.data
        assert torch.equal(labels, wanted.pred_sem_seg.data)
        # mmseg's are floats where a head has one output
        assert labels.dtype == torch.long
        scale = float(wanted.seg_logits.data.abs().max())
        torch.testing.assert_close(
            logits, wanted.seg_logits.data, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize('outputs', [1, 4])
@pytest.mark.parametrize('kind', METAS)
def test_prediction_is_mmsegs(build, kind, outputs):
    mine, theirs = both(build(outputs=outputs), samples(**METAS[kind]))
    assert_same(mine, theirs)


@pytest.mark.parametrize('mode', [dict(mode='whole'), SLIDE])
@pytest.mark.parametrize('align_corners', [True, False])
def test_corners_are_aligned_as_the_head_says(build, mode, align_corners):
    model = build(mode, align_corners=align_corners)
    assert_same(*both(model, samples(ori_shape=(45, 61))))


# Window and step: with overlap, at the border, larger than the image.
@pytest.mark.parametrize('crop_size, stride', [
    ((16, 16), (8, 8)), ((16, 24), (16, 24)), ((20, 20), (13, 17)),
    ((64, 16), (64, 8)), ((64, 64), (32, 32))])  # yapf: disable
def test_slide_mode_is_mmsegs(build, crop_size, stride):
    model = build(dict(mode='slide', crop_size=crop_size, stride=stride))
    assert_same(*both(model, samples()))


@pytest.mark.parametrize('mode', [dict(mode='whole'), SLIDE])
@pytest.mark.parametrize(
    'head', [QueryHead, lambda: ShiftingHead(8, 8, num_classes=3, in_index=1)])
def test_head_that_predicts_otherwise_is_asked_to(build, head, mode):
    model = build(mode)
    model.decode_head = head().eval()
    assert_same(*both(model, samples()))


@pytest.mark.parametrize('outputs', [1, 4])
def test_images_need_no_data_samples(build, outputs):
    mine, theirs = both(build(outputs=outputs), None)
    assert_same(mine, theirs)
    assert mine[0].pred_sem_seg.data.shape == (1, *SIZE)


def test_images_of_one_batch_may_differ_in_size_and_flip(build):
    first, second = samples(**METAS['other_size'])[0], samples(
        **METAS['vertical'])[1]
    assert_same(*both(build(), [first, second]))


def test_images_flipped_both_ways_are_turned_back(build):
    model, logits = build(), torch.randn(2, 4, *SIZE)
    given = samples(flip=True, flip_direction='diagonal')
    model.postprocess_result(logits.flip(2, 3), given)
    assert torch.equal(given[1].seg_logits.data, logits[1])


def test_channels_of_the_original_size_are_not_looked_at(build):
    given = samples(ori_shape=(45, 61, 3))
    mine = build().predict(torch.randn(2, 3, *SIZE), given)
    assert mine[0] is given[0] and mine[0].img_path == 'a.png'
    assert mine[0].pred_sem_seg.data.shape == (1, 45, 61)


def test_logits_are_kept_only_where_that_is_asked_for(build):
    model, images = build(), torch.randn(2, 3, *SIZE)
    with_logits = model.predict(images)
    model.keep_logits = False
    for sample, wanted in zip(model.predict(images), with_logits):
        assert 'seg_logits' not in sample
        assert torch.equal(sample.pred_sem_seg.data, wanted.pred_sem_seg.data)


@pytest.mark.parametrize('test_cfg', [
    dict(mode='tiles'),
    dict(mode='slide'),
    dict(mode='slide', crop_size=(8, 8))
])
def test_mode_that_does_not_exist_or_lacks_sizes_is_refused(build, test_cfg):
    with pytest.raises(ValueError, match='test_cfg must be .*, got {.mode.'):
        build(test_cfg)


# -- precision ---------------------------------------------------------------


def test_unknown_type_to_predict_in_is_refused(toys):
    with pytest.raises(
            ValueError,
            match=r"model.predict_dtype must be one of \('float32', "
            r"'bfloat16', 'float16'\), got 'bf16'"):
        toys.model(predict_dtype='bf16')


@pytest.mark.parametrize('mode', [dict(mode='whole'), SLIDE])
@pytest.mark.parametrize('name', ['float32', 'bfloat16', 'float16'])
def test_prediction_is_computed_in_the_type_asked_for(build, name, mode):
    model, images, seen = build(mode), torch.randn(2, 3, *SIZE), []
    full = torch.stack([s.seg_logits.data for s in model.predict(images)])
    model.decode_head.conv_seg.register_forward_hook(
        lambda _, __, out: seen.append(out.dtype))
    model.predict_dtype = getattr(torch, name)
    low = torch.stack([s.seg_logits.data for s in model.predict(images)])
    assert set(seen) == {getattr(torch, name)}
    assert low.dtype == torch.float32
    error = (low - full).abs().max() / full.abs().max()
    assert error < 0.03 and (error > 0) == (name != 'float32')


def test_autocast_of_a_test_loop_is_honoured(build):
    model, seen = build(), []
    model.decode_head.conv_seg.register_forward_hook(
        lambda _, __, out: seen.append(out.dtype))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        model.predict(torch.randn(2, 3, *SIZE))
    model.predict(torch.randn(2, 3, *SIZE))
    assert seen == [torch.bfloat16, torch.float32]


# -- label maps --------------------------------------------------------------

# Grid of the logits, size of the label map.
RESIZES = dict(
    fourfold=((8, 12), (32, 48)),
    odd=((7, 11), (29, 45)),
    smaller=((32, 40), (13, 17)),
    taller_and_narrower=((9, 30), (31, 14)),
    same_rows=((16, 8), (16, 32)),
    same=((12, 10), (12, 10)),
    one_row=((1, 5), (9, 20)),
    from_one_value=((1, 1), (9, 7)),
    to_one_row=((9, 5), (1, 10)))


@pytest.fixture(params=[None, 1, 3], ids=['whole', 'rows', 'strips'])
def strips(request, monkeypatch):
    """``strips(width)``: resize so many rows of five classes at a time."""

    def force(width: int) -> None:
        if request.param is not None:
            monkeypatch.setattr(prediction, '_STRIP_VALUES',
                                request.param * 5 * width + 1)

    return force


def stock(logits: Tensor, size: tuple, align_corners: bool) -> Tensor:
    """What mmseg does."""
    return F.interpolate(
        logits[None], size, mode='bilinear',
        align_corners=align_corners)[0].argmax(0)


@pytest.mark.parametrize('align_corners', [True, False])
@pytest.mark.parametrize('kind', RESIZES)
def test_labels_are_those_of_resize_and_argmax(strips, kind, align_corners):
    grid, size = RESIZES[kind]
    logits = torch.randn(5, *grid)
    before = logits.clone()
    strips(size[1])
    got = label_map(logits, size, align_corners)
    assert got.dtype == torch.long and got.shape == size
    assert torch.equal(got, stock(logits, size, align_corners))
    assert torch.equal(logits, before)


def test_first_of_equal_classes_wins(strips):
    logits = torch.randn(1, 8, 12).expand(5, 8, 12).clone()
    logits[0] -= 1
    strips(48)
    assert (label_map(logits, (32, 48), False) == 1).all()


def test_layout_of_the_logits_changes_no_label(strips):
    batch = torch.randn(2, 5, 8, 12)
    other = batch.to(memory_format=torch.channels_last)
    strips(48)
    assert torch.equal(
        label_map(other[1], (32, 48), False), stock(batch[1], (32, 48), False))
