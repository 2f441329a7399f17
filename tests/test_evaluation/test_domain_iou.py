# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest

from mmseg_mile.evaluation.domain_iou import DomainIoU

CLASSES = ('road', 'sky', 'car')


def labels(*rows: list, dtype: type = np.uint8) -> np.ndarray:
    return np.array(rows, dtype=dtype)


def test_iou_by_hand() -> None:
    iou = DomainIoU(CLASSES)
    iou.update(labels([0, 0, 0, 1]), CLASSES, labels([0, 0, 1, 1]))

    # road: 2 right, 1 too many; sky: 1 right, 1 missed.
    assert iou.class_iou()['road'] == pytest.approx(100 * 2 / 3)
    assert iou.class_iou()['sky'] == pytest.approx(50)
    assert iou.miou() == pytest.approx((200 / 3 + 50) / 2)


def test_absent_class_is_nan_and_left_out_of_the_mean() -> None:
    iou = DomainIoU(CLASSES)
    iou.update(labels([0, 1, 2]), CLASSES, labels([0, 1, 1]))

    assert math.isnan(iou.class_iou()['car'])
    assert iou.miou() == pytest.approx((100 + 50) / 2)


def test_classes_are_compared_by_name() -> None:
    iou = DomainIoU(CLASSES)
    iou.update(labels([0, 1]), ('sky', 'road'), labels([1, 0]))

    assert iou.class_iou()['road'] == iou.class_iou()['sky'] == 100


def test_predicted_class_that_the_task_lacks_is_wrong() -> None:
    iou = DomainIoU(CLASSES)
    iou.update(labels([0, 1, 2]), ('road', 'crop', 'weed'), labels([0, 0, 0]))

    assert iou.class_iou()['road'] == pytest.approx(100 / 3)
    assert iou.confusion[0].tolist() == [1, 0, 0, 2]


def test_pixel_without_a_prediction_is_wrong() -> None:
    iou = DomainIoU(CLASSES)
    iou.update(
        labels([0, 255, 255, 255]), ('road', 'weed'), labels([0, 0, 1, 255]))

    assert iou.confusion.tolist() == [[1, 0, 0, 1], [0, 0, 0, 1], [0] * 4]
    assert iou.miou() == 25


def test_of_more_classes_than_255_that_is_one() -> None:
    classes = [f'class {i}' for i in range(256)]
    iou = DomainIoU(classes)
    iou.update(labels([255]), classes, labels([254]))

    assert iou.confusion[254, 255] == 1


def test_ignore_index_can_be_chosen() -> None:
    iou = DomainIoU(CLASSES, ignore_index=1)
    iou.update(labels([0, 0]), CLASSES, labels([0, 1]))

    assert iou.miou() == 100


def test_counts_match_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    predicted_classes = ('weed', 'car', 'road')
    truth = rng.integers(0, 3, (17, 23))
    truth[0] = 255
    prediction = rng.integers(0, 3, (17, 23))
    expected = np.zeros((3, 4), int)
    for true, seen in zip(truth.ravel(), prediction.ravel()):
        if true != 255:
            name = predicted_classes[seen]
            column = CLASSES.index(name) if name in CLASSES else 3
            expected[true, column] += 1

    iou = DomainIoU(CLASSES)
    iou.update(prediction, predicted_classes, truth)

    np.testing.assert_array_equal(iou.confusion, expected)
    assert iou.confusion.dtype == np.int64


def test_eight_bit_labels_do_not_overflow() -> None:
    classes = [f'class {i}' for i in range(150)]
    iou = DomainIoU(classes)
    iou.update(labels([149]), classes, labels([149]))

    assert iou.confusion[149, 149] == 1


def test_merge_refuses_another_label_space() -> None:
    with pytest.raises(ValueError, match='one label space'):
        DomainIoU(CLASSES).merge(DomainIoU(('road', 'car', 'sky')))


@pytest.mark.filterwarnings('error')
def test_only_ignored_pixels_are_nan_without_warning() -> None:
    iou = DomainIoU(CLASSES)
    iou.update(labels([0, 0]), CLASSES, labels([255, 255]))

    assert math.isnan(iou.miou())


@pytest.mark.parametrize('value', [3, 254, -1])
def test_truth_outside_the_classes_is_refused(value: int) -> None:
    with pytest.raises(
            ValueError,
            match=f'truth holds the value {value}, '
            'allowed are 0 to 2'):
        DomainIoU(CLASSES).update(
            labels([0]), CLASSES, labels([value], dtype=np.int16))


def test_prediction_outside_its_classes_is_refused() -> None:
    with pytest.raises(ValueError, match='prediction holds the value 2'):
        DomainIoU(CLASSES).update(labels([2]), CLASSES[:2], labels([0]))


def test_refused_map_leaves_the_counts_alone() -> None:
    iou = DomainIoU(CLASSES)
    with pytest.raises(ValueError):
        iou.update(labels([0, 2]), CLASSES[:2], labels([0, 0]))

    assert iou.confusion.sum() == 0


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match='shape'):
        DomainIoU(CLASSES).update(labels([0]), CLASSES, labels([0, 0]))


def test_scores_are_no_label_map() -> None:
    with pytest.raises(ValueError, match='integer label map'):
        DomainIoU(CLASSES).update(np.zeros((1, 1)), CLASSES, labels([0]))


@pytest.mark.parametrize('classes', [(), ('road', 'road')])
def test_classes_must_be_different_names(classes: tuple) -> None:
    with pytest.raises(ValueError, match='different names'):
        DomainIoU(classes)
