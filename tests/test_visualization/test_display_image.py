# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmseg_mile.visualization.display_image import read_image_for_display


def write(path: Path, image: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), image)
    return path


def test_colours_are_rgb(tmp_path: Path) -> None:
    blue_in_bgr = np.full((2, 3, 3), (250, 20, 10), np.uint8)

    image = read_image_for_display(write(tmp_path / 'a.png', blue_in_bgr))

    assert image.shape == (2, 3, 3)
    assert image.dtype == np.uint8
    assert image[0, 0].tolist() == [10, 20, 250]


def test_eight_bit_grey_is_shown_as_it_is(tmp_path: Path) -> None:
    grey = np.array([[7, 9]], np.uint8)

    image = read_image_for_display(write(tmp_path / 'a.png', grey))

    assert image.tolist() == [[[7, 7, 7], [9, 9, 9]]]


def test_alpha_is_dropped(tmp_path: Path) -> None:
    clear = np.full((2, 2, 4), (1, 2, 3, 0), np.uint8)

    image = read_image_for_display(write(tmp_path / 'a.png', clear))

    assert image[0, 0].tolist() == [3, 2, 1]


def test_sixteen_bit_is_stretched(tmp_path: Path) -> None:
    # Thermal counts: a narrow band far from both ends of the range.
    counts = np.linspace(22000, 24000, 400).reshape(20, 20)

    image = read_image_for_display(
        write(tmp_path / 'a.png', counts.astype(np.uint16)))

    assert image.dtype == np.uint8
    assert image.min() == 0
    assert image.max() == 255
    assert abs(int(np.median(image)) - 128) < 3


def test_hot_pixels_do_not_darken_the_rest(tmp_path: Path) -> None:
    counts = np.linspace(22000, 24000, 400).reshape(20, 20)
    counts[0, 0] = 65535

    image = read_image_for_display(
        write(tmp_path / 'a.png', counts.astype(np.uint16)))

    assert image[10:].mean() > 150


def test_constant_sixteen_bit_image_is_shown(tmp_path: Path) -> None:
    image = read_image_for_display(
        write(tmp_path / 'a.png', np.full((4, 4), 9000, np.uint16)))

    assert image.max() == 0


@pytest.mark.parametrize('content', [b'', b'no image'])
def test_broken_image_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / 'broken.png'
    path.write_bytes(content)

    with pytest.raises(ValueError, match='broken.png'):
        read_image_for_display(path)


def test_border_without_a_reading_takes_no_range(tmp_path: Path) -> None:
    image = np.zeros((40, 100), np.uint16)
    image[:, 10:90] = np.linspace(22000, 24000, 80)
    path = tmp_path / 'thermal.png'
    assert cv2.imwrite(str(path), image)
    shown = read_image_for_display(path)[..., 0]
    assert shown[0, 12] < 10 and shown[0, 87] > 245
    assert abs(int(shown[0, 50]) - 128) < 10
