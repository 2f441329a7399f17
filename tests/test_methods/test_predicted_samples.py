# SPDX-License-Identifier: Apache-2.0
"""Predicted samples are those of mmseg's ``postprocess_result``."""
from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from mmseg.models.segmentors.base import BaseSegmentor
from mmseg.models.utils import resize
from mmseg.structures import SegDataSample
from mmseg_mile.methods.prediction import PredictedSamples

INPUT = (24, 32)
PADDED = dict(img_shape=(20, 29), img_padding_size=[1, 2, 4, 0])
METAS = dict(
    plain=dict(),
    other_size=dict(ori_shape=(45, 61)),
    smaller=dict(ori_shape=(11, 13)),
    size_with_channels=dict(ori_shape=(45, 61, 3)),
    padded=PADDED,
    padded_to_its_own_size=dict(PADDED, ori_shape=(20, 29)),
    padded_by_the_pipeline=dict(padding_size=[0, 3, 0, 5]),
    no_padding=dict(padding_size=[0, 0, 0, 0]),
    horizontal=dict(flip=True, flip_direction='horizontal'),
    vertical=dict(flip=True, flip_direction='vertical'),
    not_flipped=dict(flip=False, flip_direction='horizontal'),
    all_of_it=dict(
        PADDED, ori_shape=(45, 61), flip=True, flip_direction='horizontal'))


def head(align_corners: bool = False, threshold: float = 0.3) -> object:
    """What a sample wants to know of a head."""
    return SimpleNamespace(align_corners=align_corners, threshold=threshold)


def samples(count: int = 1, **changes: object) -> list[SegDataSample]:
    """Data samples as a test pipeline packs them."""
    meta = dict(
        ori_shape=INPUT, img_shape=INPUT, pad_shape=INPUT, img_path='a.png')
    return [SegDataSample(metainfo={**meta, **changes}) for _ in range(count)]


def stock(logits: Tensor, data_samples: list | None,
          own: object) -> list[SegDataSample]:
    """What mmseg makes of a head's logits."""
    model = SimpleNamespace(align_corners=own.align_corners, decode_head=own)
    for sample in data_samples or []:
        # mmseg of 2024 resizes to a height and a width only
        sample.set_metainfo(dict(ori_shape=sample.ori_shape[:2]))
    logits = resize(
        logits, INPUT, mode='bilinear', align_corners=own.align_corners)
    return BaseSegmentor.postprocess_result(model, logits, data_samples)


def ours(logits: Tensor, data_samples: list | None, own: object,
         keep_logits: bool) -> list[SegDataSample]:
    """The same, image by image in another order."""
    predicted = PredictedSamples(
        torch.zeros(len(logits), 3, *INPUT), data_samples, keep_logits)
    for index in reversed(range(len(logits))):
        predicted.write([index], logits[index:index + 1], own)
    return predicted.samples


@pytest.mark.parametrize('keep_logits', [True, False])
@pytest.mark.parametrize('num_outputs', [1, 4])
@pytest.mark.parametrize('grid', [(6, 8), INPUT])
@pytest.mark.parametrize('kind', METAS)
def test_prediction_is_mmsegs(kind, grid, num_outputs, keep_logits):
    logits = torch.randn(2, num_outputs, *grid)
    wanted = stock(logits, samples(2, **METAS[kind]), head())
    got = ours(logits, samples(2, **METAS[kind]), head(), keep_logits)
    for mine, theirs in zip(got, wanted):
        assert torch.equal(mine.pred_sem_seg.data, theirs.pred_sem_seg.data)
        assert mine.pred_sem_seg.data.dtype == theirs.pred_sem_seg.data.dtype
        assert ('seg_logits' in mine) == keep_logits
        if keep_logits:
            torch.testing.assert_close(mine.seg_logits.data,
                                       theirs.seg_logits.data)


@pytest.mark.parametrize('kind', ['plain', 'other_size', 'all_of_it'])
def test_corners_are_aligned_as_the_head_says(kind):
    logits, own = torch.randn(1, 4, 6, 8), head(align_corners=True)
    theirs, = stock(logits, samples(**METAS[kind]), own)
    mine, = ours(logits, samples(**METAS[kind]), own, False)
    assert torch.equal(mine.pred_sem_seg.data, theirs.pred_sem_seg.data)
    other, = ours(logits, samples(**METAS[kind]), head(), False)
    assert not torch.equal(mine.pred_sem_seg.data, other.pred_sem_seg.data)


@pytest.mark.parametrize('num_outputs', [1, 4])
def test_images_without_data_samples_keep_the_size_of_the_input(num_outputs):
    logits = torch.randn(2, num_outputs, 6, 8)
    wanted = stock(logits, None, head())
    for mine, theirs in zip(ours(logits, None, head(), True), wanted):
        assert torch.equal(mine.pred_sem_seg.data, theirs.pred_sem_seg.data)
        assert torch.equal(mine.seg_logits.data, theirs.seg_logits.data)


def test_images_without_data_samples_have_metas_for_heads():
    predicted = PredictedSamples(torch.zeros(2, 3, *INPUT), None, False)
    meta, other = predicted.metas()
    assert meta['img_shape'] == meta['ori_shape'] == meta['pad_shape'] == INPUT
    assert meta is not other


def test_metas_are_those_of_the_samples():
    given = samples(2)
    predicted = PredictedSamples(torch.zeros(2, 3, *INPUT), given, False)
    assert [m['img_path'] for m in predicted.metas()] == ['a.png', 'a.png']


def test_given_samples_are_written_to_and_keep_what_they_carry():
    given = samples(task='fog')
    logits = torch.randn(1, 4, 6, 8)
    written = ours(logits, given, head(), False)
    assert written[0] is given[0]
    assert given[0].task == 'fog' and 'pred_sem_seg' in given[0]


def test_images_of_one_batch_may_differ_in_size_and_padding():
    metas = [METAS['padded'], METAS['other_size'], METAS['vertical']]
    given = [samples(**meta)[0] for meta in metas]
    logits = torch.randn(3, 4, 6, 8)
    wanted = stock(logits, copy.deepcopy(given), head())
    for mine, theirs in zip(ours(logits, given, head(), False), wanted):
        assert torch.equal(mine.pred_sem_seg.data, theirs.pred_sem_seg.data)


def test_images_flipped_both_ways_are_turned_back():
    logits = torch.randn(1, 4, *INPUT)
    flipped, = ours(
        logits.flip(2, 3), samples(flip=True, flip_direction='diagonal'),
        head(), True)
    assert torch.equal(flipped.seg_logits.data, logits[0])


def test_unknown_flip_is_refused():
    with pytest.raises(
            ValueError,
            match=r"flip_direction must be one of \['diagonal', .*got 'left'"):
        ours(
            torch.randn(1, 4, 6, 8), samples(flip=True, flip_direction='left'),
            head(), False)


def test_foreground_is_what_exceeds_the_heads_threshold():
    logits = torch.tensor([0.4, 0.6]).logit()[None, None, :, None]
    logits = logits.expand(1, 1, 2, 32).repeat_interleave(12, dim=2)
    for threshold, wanted in ((0.3, 1.0), (0.5, 0.5), (0.7, 0.0)):
        sample, = ours(logits, samples(), head(threshold=threshold), False)
        assert sample.pred_sem_seg.data.mean() == wanted
