# SPDX-License-Identifier: Apache-2.0
"""Whether two models say the same."""
from __future__ import annotations

import pytest
import torch
from mmengine.structures import PixelData

from mmseg.structures import SegDataSample
from mmseg_mile.benchmarks.comparison import Difference, compare


def sample(logits):
    return SegDataSample(
        seg_logits=PixelData(data=logits),
        pred_sem_seg=PixelData(data=logits.argmax(0, keepdim=True)))


# Two classes on 1 x 2 pixels: label 0, then label 1.
LOGITS = torch.tensor([[[4.0, 1.0]], [[2.0, 3.0]]])


def test_equal_predictions_pass():
    difference = compare([sample(LOGITS)], [sample(LOGITS)])
    assert difference == Difference(0.0, 0.0, num_labels=2, num_pixels=2)
    assert difference.passed


def test_difference_is_relative_to_the_largest_logit():
    moved = LOGITS.clone()
    moved[0, 0, 0] += 0.4
    assert compare([sample(moved)], [sample(LOGITS)]).logits == (
        pytest.approx(0.1))


def test_changed_label_is_counted():
    moved = LOGITS.clone()
    moved[0, 0, 0] = 1.0
    difference = compare([sample(moved)], [sample(LOGITS)])
    assert difference.labels == 0.5
    assert not difference.passed


def test_nan_does_not_pass():
    moved = torch.full_like(LOGITS, torch.nan)
    for pair in ((LOGITS, moved), (moved, LOGITS)):
        samples = [sample(x) for x in pair]
        assert not compare(samples, [sample(LOGITS)] * 2).passed


def test_maps_of_one_label_do_not_pass():
    flat = torch.tensor([[[4.0, 4.0]], [[2.0, 3.0]]])
    assert not compare([sample(flat)], [sample(flat)]).passed


def test_missing_logits_are_refused():
    with pytest.raises(ValueError, match='no seg_logits'):
        compare([SegDataSample()], [sample(LOGITS)])


def test_other_difference_of_logits_can_be_allowed():
    difference = Difference(2e-4, 0.0, num_labels=2, num_pixels=100)
    assert not difference.passed
    assert difference.within(3e-4)


@pytest.mark.parametrize('wrong, total, passed', [(1, 100, True),
                                                  (2, 100, False),
                                                  (9, 99999, True),
                                                  (11, 99999, False)])
def test_one_pixel_or_one_in_ten_thousand_may_lie_on_a_tie(
        wrong, total, passed):
    assert Difference(1e-6, wrong / total, 2, total).passed is passed
