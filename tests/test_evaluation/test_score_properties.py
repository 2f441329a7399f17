# SPDX-License-Identifier: Apache-2.0
"""What holds for the scores of any stream."""
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmseg_mile.evaluation import DomainIoU
# yapf: disable
from mmseg_mile.evaluation.continual_scores import (all_scores, average_miou,
                                                    backward_transfer,
                                                    forgetting,
                                                    harmonic_mean_miou,
                                                    mismatch_drop, oracle_gap,
                                                    plasticity, stability)

# yapf: enable

bounded = settings(
    max_examples=150, deadline=None, derandomize=True, database=None)


@st.composite
def matrices(draw, least=1):
    """Score matrices of up to five tasks, in whole per cent."""
    size = draw(st.integers(least, 5))
    values = st.lists(st.integers(1, 100), min_size=size, max_size=size)
    return np.array([draw(values) for _ in range(size)], dtype=float)


@bounded
@given(matrix=matrices())
def test_means_lie_between_the_worst_and_the_best_task(matrix):
    last = matrix[-1]
    mean, harmonic = average_miou(matrix), harmonic_mean_miou(matrix)
    assert last.min() - 1e-9 <= harmonic <= mean + 1e-9 <= last.max() + 2e-9


@bounded
@given(matrix=matrices(2))
def test_loss_since_learning_is_at_most_the_forgetting(matrix):
    # the best earlier score is at least the one just after learning
    assert forgetting(matrix) >= -backward_transfer(matrix) - 1e-9


@bounded
@given(matrix=matrices(2))
def test_stream_that_never_changes_forgets_nothing(matrix):
    matrix[:] = matrix[0]
    assert forgetting(matrix) == backward_transfer(matrix) == 0
    assert stability(matrix) == 1
    assert plasticity(matrix) == average_miou(matrix)


@bounded
@given(matrix=matrices(2), points=st.integers(0, 50))
def test_points_lost_at_the_end_are_points_forgotten(matrix, points):
    lower = matrix.copy()
    lower[-1, :-1] -= points
    assert forgetting(lower) == pytest.approx(forgetting(matrix) + points)
    assert backward_transfer(lower) == pytest.approx(
        backward_transfer(matrix) - points)


@bounded
@given(matrix=matrices(), points=st.integers(0, 50))
def test_oracle_gap_is_what_the_oracle_has_more(matrix, points):
    assert oracle_gap(matrix, matrix) == 0
    assert oracle_gap(matrix, matrix + points) == pytest.approx(points)


@bounded
@given(row=matrices(2), points=st.integers(0, 50))
def test_mismatch_drop_is_what_wrong_experts_lose(row, points):
    own = row[0]
    forced = np.repeat(own[:, None] - points, len(own), axis=1)
    assert mismatch_drop(own, forced) == pytest.approx(points)


@bounded
@given(matrix=matrices(), data=st.data())
def test_score_with_a_cell_unknown_is_unknown_or_the_same(matrix, data):
    cell = tuple(data.draw(st.integers(0, len(matrix) - 1)) for _ in 'ij')
    partial = matrix.copy()
    partial[cell] = math.nan
    before, after = (all_scores(m, matrix, matrix) for m in (matrix, partial))
    for name, value in after.items():
        # the best of earlier scores may be another one
        if name == 'forgetting' and not math.isnan(value):
            assert value <= before[name] + 1e-9
        else:
            assert math.isnan(value) or value == before[name]


@st.composite
def label_maps(draw):
    """Truth with ignored pixels, and a prediction of the same shape."""
    shape = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    size = shape[0] * shape[1]
    values = st.lists(st.integers(0, 2), min_size=size, max_size=size)
    truth = np.array(draw(values), dtype=np.uint8).reshape(shape)
    truth[np.array(draw(values)).reshape(shape) == 2] = 255
    return truth, np.array(draw(values), dtype=np.uint8).reshape(shape)


CLASSES = ('a', 'b', 'c')


def iou_of(*pairs, names=CLASSES):
    """Counts of some pairs of truth and prediction."""
    score = DomainIoU(CLASSES)
    for truth, prediction in pairs:
        score.update(prediction, names, truth)
    return score


@bounded
@given(pair=label_maps())
def test_every_pixel_that_is_not_ignored_is_counted_once(pair):
    assert iou_of(pair).confusion.sum() == (pair[0] != 255).sum()


@bounded
@given(pair=label_maps())
def test_iou_is_100_exactly_for_the_truth(pair):
    truth = pair[0]
    score = iou_of((truth, np.where(truth == 255, 0, truth)))
    for index, value in enumerate(score.class_iou().values()):
        assert value == 100 if (truth == index).any() else math.isnan(value)


@bounded
@given(pair=label_maps(), order=st.permutations(range(3)))
def test_order_of_the_predicted_classes_does_not_matter(pair, order):
    truth, prediction = pair
    renamed = np.argsort(order).astype(np.uint8)[prediction]
    names = tuple(CLASSES[i] for i in order)
    assert (iou_of((truth, renamed),
                   names=names).confusion == iou_of(pair).confusion).all()


@bounded
@given(pairs=st.lists(label_maps(), max_size=4), cut=st.integers(0, 4))
def test_counts_of_parts_merge_to_those_of_the_whole(pairs, cut):
    merged = iou_of(*pairs[:cut])
    merged.merge(iou_of(*pairs[cut:]))
    assert (merged.confusion == iou_of(*pairs).confusion).all()


@bounded
@given(pair=label_maps())
def test_foreign_classes_count_as_wrong(pair):
    score = iou_of(pair, names=('x', 'y', 'z'))
    assert all(not v or math.isnan(v) for v in score.class_iou().values())
    assert score.confusion.sum() == (pair[0] != 255).sum()
