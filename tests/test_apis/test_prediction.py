# SPDX-License-Identifier: Apache-2.0
"""A prediction says what it is and why."""
from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData

from mmseg.structures import SegDataSample
from mmseg_mile.apis.images import ImageContent
from mmseg_mile.apis.predictions import Prediction

IMAGE = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


def prediction(labels=((0, 0, 0, 1), (255, 1, 0, 0)), **changes):
    values = dict(
        name='a/b.png',
        labels=np.array(labels, np.uint8),
        classes=('sky', 'road'),
        palette=((1, 2, 3), (4, 5, 6)),
        expert='day',
        mixture=dict(day=1.0),
        distances=dict(night=3.0, day=1.25),
        ood=False,
        abstained=False,
        ood_score=0.5,
        forced=False,
        seconds=0.25,
        source=ImageContent.of_array('a/b.png', IMAGE, rgb=True))
    values.update(changes)
    return Prediction(**values)


MIXED = dict(mixture=dict(day=0.25, night=0.75), expert='night')
BASE = dict(mixture={}, expert=None, ood=True, ood_score=2.0)
FORCED = dict(
    forced=True, ood_score=None, distances=dict(night=math.nan, day=math.nan))


@pytest.mark.parametrize('changes, expected', [
    ({}, 'expert day'),
    (MIXED, 'experts 75 % night + 25 % day'),
    (BASE, 'base without an expert'),
    (dict(BASE, abstained=True), 'no prediction'),
])
def test_who_predicted(changes, expected):
    assert prediction(**changes).speaker() == expected


@pytest.mark.parametrize('changes, expected', [
    ({}, ['Nearest expert: day, at a distance of 1.25; next is night at 3.',
          'Familiar: 0.50 on a scale']),
    (MIXED, ['Prediction: experts 75 % night + 25 % day.', 'Familiar']),
    (BASE, ['Prediction: base without an expert.',
            'Out-of-distribution: 2.00 on a scale', 'do not rely on the map']),
    (dict(BASE, abstained=True), ['knows: it is left out.']),
    (FORCED, ['Expert day was asked for']),
    (dict(FORCED, forced=False), ['it measures no distance']),
    (dict(ood_score=None, ood=True),
     ['Out-of-distribution to all experts.']),
])  # yapf: disable
def test_reasons(changes, expected):
    text = ' '.join(prediction(**changes).reasons())
    for part in expected:
        assert part in text


def test_uncalibrated_expert_makes_no_claim():
    # a single training image: nothing can be flagged
    assert len(prediction(ood_score=0.0, ood=False).reasons()) == 2
    assert len(prediction(ood_score=None).reasons()) == 1


def test_captions_mark_what_is_unfamiliar():
    first, second = prediction().captions()
    assert (first.text, first.bold) == ('expert day', True)
    assert second.text == 'distances: day 1.25, night 3'
    flagged = prediction(**BASE).captions()
    assert flagged[0].text.endswith('UNFAMILIAR')
    assert flagged[0].colour != first.colour
    assert prediction(**FORCED).captions()[1].text == 'expert as asked for'


def test_shares_are_those_of_the_pixels():
    assert prediction().shares() == {
        'sky': 5 / 8,
        'road': 2 / 8,
        'no label': 1 / 8
    }


def test_record_is_json_without_nan():
    record = json.loads(json.dumps(prediction(**FORCED).record(),
                                   allow_nan=False))  # yapf: disable
    assert record['distances'] == dict(night=None, day=None)
    assert record['size'] == [2, 4]
    assert record['classes'] == ['sky', 'road']
    assert 'labels' not in record


def test_image_is_read_again_in_rgb():
    np.testing.assert_array_equal(prediction().image(), IMAGE)


def test_image_is_cropped_as_the_labels_were():
    cut = prediction(labels=((0, 0), (0, 0)), columns=(1, 3))
    np.testing.assert_array_equal(cut.image(), IMAGE[:, 1:3])


@pytest.mark.parametrize('count, dtype', [(255, np.uint8), (256, np.uint16)])
def test_labels_are_as_wide_as_they_must_be(count, dtype):
    sample = SegDataSample(
        metainfo=dict(
            classes=tuple(map(str, range(count))),
            palette=((0, 0, 0), ) * count,
            expert='day',
            mixture={},
            distances={},
            ood=False,
            ood_score=None,
            abstained=False))
    sample.pred_sem_seg = PixelData(data=torch.full((1, 2, 4), count - 1))
    made = Prediction.of(
        ImageContent('x', b''), sample, forced=False, seconds=0.0)
    assert made.labels.dtype == dtype
    assert (made.labels == count - 1).all()
    assert not made.abstained
