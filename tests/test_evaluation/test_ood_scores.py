# SPDX-License-Identifier: Apache-2.0
"""Scores of a flag, on few images whose order can be seen."""
from __future__ import annotations

import numpy as np
import pytest

from mmseg_mile.evaluation.ood_scores import (FlagScores, auroc,
                                              false_positive_rate, flag_scores,
                                              flagged)


@pytest.mark.parametrize('familiar, ood, wanted', [
    ([1, 2], [3, 4], 1.0),
    ([3, 4], [1, 2], 0.0),
    ([1, 2, 3], [2, 4], 4.5 / 6),
    ([5, 5], [5], 0.5),
    ([0, np.inf], [1], 0.5),
    ([-1], [-np.inf, 2], 0.5),
])
def test_auroc_is_the_share_of_pairs_in_order(familiar, ood, wanted):
    assert auroc(familiar, ood) == wanted


def test_auroc_is_that_of_counting_all_pairs():
    rng = np.random.default_rng(0)
    familiar, ood = rng.integers(0, 9, 40), rng.integers(3, 12, 25)
    pairs = np.sign(ood[:, None] - familiar) / 2 + 0.5
    assert auroc(familiar, ood) == pytest.approx(pairs.mean())


def test_auroc_of_swapped_kinds_is_the_rest():
    familiar, ood = [1., 2, 2, 7], [2., 5, 0]
    assert auroc(familiar, ood) == pytest.approx(1 - auroc(ood, familiar))


@pytest.mark.parametrize('familiar, ood, detected, wanted', [
    ([1, 2, 3, 4], [3, 5], 0.95, 0.5),
    ([1, 2, 3, 4], [3, 5], 0.5, 0.0),
    ([1, 2], [3, 4], 0.95, 0.0),
    ([3, 4], [1, 2], 0.95, 1.0),
    ([5], [5], 1.0, 1.0),
])
def test_false_positives_where_most_strangers_are_found(
        familiar, ood, detected, wanted):
    assert false_positive_rate(familiar, ood, detected) == wanted


def test_one_of_twenty_strangers_may_be_missed():
    # 19 of 20 are 95 %, so the one at 0 is missed and the flag stands at 2
    ood = [0] + [2] * 19
    assert false_positive_rate([1, 2, 3], ood) == 2 / 3
    # of 19, 95 % are 18.05, so that none may be
    assert false_positive_rate([1, 2, 3], [0] + [2] * 18) == 1


def test_image_on_the_threshold_is_not_flagged():
    assert flagged([0.5, 1, 1.5, 3]) == 0.5
    assert flagged([0.5, 1, 1.5, 3], 2) == 0.25


def test_all_scores_at_once():
    found = flag_scores([0.5, 0.8, 1.2, 0.1], np.array([[1.1], [0.9]]))
    # in order: 1.1 above three, 0.9 above three; both found at 0.9
    assert found == FlagScores(6 / 8, 1 / 4, 1 / 4, 1 / 2)
    assert flag_scores([0.5], [1.5], 2).detected == 0


@pytest.mark.parametrize('scores', [[], [np.nan], [1, np.nan, 2]])
@pytest.mark.parametrize('use', [
    lambda scores: auroc(scores, [1]), lambda scores: auroc([1], scores),
    lambda scores: false_positive_rate(scores, [1]),
    lambda scores: false_positive_rate([1], scores), flagged
])  # yapf: disable
def test_kind_without_images_and_nan_are_refused(use, scores):
    with pytest.raises(ValueError, match='at least one of each; got'):
        use(scores)


@pytest.mark.parametrize('share', [0, -1, 1.01])
def test_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match=r'in \(0, 1\], got'):
        false_positive_rate([1], [2], share)
