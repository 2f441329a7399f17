# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from mmseg_mile.visualization.landmark_map import (classical_mds, landmark_map,
                                                   place_by_landmarks)


def distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.linalg.norm(one[:, None] - other[None], axis=-1)


# A right triangle with legs of 3 and 4.
TRIANGLE = np.array([[0., 0.], [3., 0.], [0., 4.]])


def test_two_points_lie_half_their_distance_from_the_middle() -> None:
    points = classical_mds(np.array([[0., 6.], [6., 0.]]))

    assert np.abs(points).ravel().tolist() == pytest.approx([3, 3])
    assert points.sum() == pytest.approx(0)


def test_points_of_a_plane_are_recovered_up_to_rotation() -> None:
    points = classical_mds(distances(TRIANGLE, TRIANGLE))

    assert points.shape == (3, 2)
    assert distances(points,
                     points) == pytest.approx(distances(TRIANGLE, TRIANGLE))
    # the direction of largest variance comes first
    assert points[:, 0].var() > points[:, 1].var()


def test_points_that_coincide_span_nothing() -> None:
    assert classical_mds(np.zeros((4, 4))).shape == (4, 0)


def test_distances_of_no_points_give_the_nearest_that_can_be() -> None:
    # 1 + 1 < 3: no such triangle; what is left is a line
    impossible = np.array([[0., 1., 3.], [1., 0., 1.], [3., 1., 0.]])
    points = classical_mds(impossible)

    assert points.shape == (3, 1)
    assert points[0, 0] == pytest.approx(-points[2, 0])
    assert points[1, 0] == pytest.approx(0)


def test_more_points_of_the_plane_are_placed_exactly() -> None:
    more = np.array([[1., 1.], [-5., 7.], [3., 0.]])
    landmarks = classical_mds(distances(TRIANGLE, TRIANGLE))
    placed = place_by_landmarks(landmarks, distances(TRIANGLE, TRIANGLE),
                                distances(more, TRIANGLE))

    assert distances(placed,
                     landmarks) == pytest.approx(distances(more, TRIANGLE))
    assert distances(placed, placed) == pytest.approx(distances(more, more))


def test_point_above_the_plane_lands_on_its_foot() -> None:
    flat = np.pad(TRIANGLE, ((0, 0), (0, 1)))
    above = np.array([[1., 1., 5.]])
    landmarks = classical_mds(distances(flat, flat))
    placed = place_by_landmarks(landmarks, distances(flat, flat),
                                distances(above, flat))

    assert distances(placed, landmarks) == pytest.approx(
        distances(np.array([[1., 1.]]), TRIANGLE))


def test_map_of_a_plane_is_the_plane() -> None:
    images = np.array([[1., 1.], [2., 3.], [-1., 0.]])
    found = landmark_map(
        distances(TRIANGLE, TRIANGLE), distances(images, TRIANGLE))

    assert not found.is_line
    assert distances(found.prototypes, found.prototypes) == pytest.approx(
        distances(TRIANGLE, TRIANGLE))
    assert distances(found.images, found.prototypes) == pytest.approx(
        distances(images, TRIANGLE))
    assert found.prototype_share == pytest.approx(1)
    assert found.image_share == pytest.approx(1)


def test_two_prototypes_make_a_line_and_a_distance_from_it() -> None:
    ends = np.array([[0., 0., 0.], [10., 0., 0.]])
    # 3 and 4 to the sides are 5 from the line
    images = np.array([[2., 3., 4.], [10., 0., 0.]])
    found = landmark_map(distances(ends, ends), distances(images, ends))

    assert found.is_line
    assert found.prototypes == pytest.approx(np.array([[-5, 0], [5, 0]]))
    assert found.images == pytest.approx(np.array([[-3, 5], [5, 0]]), abs=1e-6)


def test_three_prototypes_on_a_line_make_one_too() -> None:
    ends = np.array([[0., 0.], [1., 0.], [4., 0.]])
    found = landmark_map(
        distances(ends, ends), distances(np.array([[1., 2.]]), ends))

    assert found.is_line
    assert found.images[0, 1] == pytest.approx(2, abs=1e-4)
    assert found.image_share == 0  # one image varies beside the line only


def test_shares_tell_what_the_plane_leaves_out() -> None:
    # Four corners of a box of 6 x 4 x 2: variances in the ratio 36 : 16 : 4.
    corners = np.array([[3, 2, 1], [3, -2, -1], [-3, 2, -1], [-3, -2, 1.]])
    # Beside the box's three dimensions the images have a fourth.
    images = np.pad(corners, ((0, 0), (0, 1)))
    images[:, 3] = [1, -1, -1, 1]
    found = landmark_map(
        distances(corners, corners),
        distances(images, np.pad(corners, ((0, 0), (0, 1)))))

    assert found.prototype_share == pytest.approx(52 / 56)
    # variances 9 and 4 of 9 + 4 + 1 + 1
    assert found.image_share == pytest.approx(13 / 15)


def test_asymmetric_distances_are_averaged() -> None:
    found = landmark_map(np.array([[0., 5.], [7., 0.]]), np.array([[3., 3.]]))

    assert found.prototypes[:, 0].tolist() == pytest.approx([-3, 3])


def test_first_prototype_lies_left_and_below() -> None:
    turned = TRIANGLE[::-1]
    for points in (TRIANGLE, turned, -TRIANGLE):
        found = landmark_map(
            distances(points, points), distances(points, points))
        assert (found.prototypes[0] <= 0).all()


@pytest.mark.parametrize('between, images, message',
                         [(np.zeros((2, 2)), np.ones(
                             (1, 2)), 'two or more prototypes'),
                          (np.zeros((1, 1)), np.ones(
                              (1, 1)), 'two or more prototypes'),
                          (np.zeros((0, 0)), np.ones(
                              (1, 0)), 'two or more prototypes'),
                          (np.ones((2, 2)), np.ones(
                              (1, 3)), r'must be \(K, K\)'),
                          (np.full((2, 2), np.nan), np.ones(
                              (1, 2)), 'must all be known')])
def test_what_cannot_be_mapped_is_refused(between: np.ndarray,
                                          images: np.ndarray,
                                          message: str) -> None:
    with pytest.raises(ValueError, match=message):
        landmark_map(between, images)
