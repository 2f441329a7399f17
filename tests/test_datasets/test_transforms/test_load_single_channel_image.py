# SPDX-License-Identifier: Apache-2.0
import cv2
import numpy as np
import pytest

from mmseg.registry import TRANSFORMS
from mmseg_mile.datasets.transforms import LoadSingleChannelImage


@pytest.fixture
def load(tmp_path):

    def load(array, low, high, **kwargs):
        path = str(tmp_path / 'frame.png')
        cv2.imwrite(path, array)
        transform = LoadSingleChannelImage(low=low, high=high, **kwargs)
        return transform(dict(img_path=path))

    return load


def test_16_bit_counts_are_clipped_and_scaled(load):
    counts = np.array([[21000, 21800, 23400, 25000, 65535]], np.uint16)
    img = load(counts, low=21800, high=25000)['img']
    # 23400 is half way.
    np.testing.assert_allclose(img[0, :, 0], [0, 0, 127.5, 255, 255])


def test_8_bit_images_are_read(load):
    img = load(np.array([[0, 51, 255]], np.uint8), low=0, high=255)['img']
    np.testing.assert_allclose(img[0, :, 0], [0, 51, 255], rtol=1e-6)


def test_neighbouring_counts_stay_apart(load):
    counts = np.array([[23000, 23001]], np.uint16)
    img = load(counts, low=21800, high=25000)['img']
    assert img[0, 1, 0] > img[0, 0, 0]


def test_channels_are_copies(load):
    img = load(np.array([[3, 9]], np.uint8), 0, 10, num_channels=4)['img']
    assert img.shape == (1, 2, 4) and img.dtype == np.float32
    assert (img == img[:, :, :1]).all()


def test_shapes_are_recorded(load):
    results = load(np.zeros((4, 6), np.uint8), 0, 1)
    assert results['img_shape'] == results['ori_shape'] == (4, 6)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_grey_file_of_three_channels_is_read(load, dtype):
    grey = np.repeat(np.arange(6, dtype=dtype).reshape(2, 3, 1), 3, axis=2)
    img = load(grey, low=0, high=255)['img']
    np.testing.assert_allclose(img[:, :, 0], grey[:, :, 0], rtol=1e-6)


def test_colour_file_is_rejected(load):
    colour = np.zeros((2, 3, 3), np.uint8)
    colour[0, 0] = (1, 2, 3)
    with pytest.raises(ValueError, match='frame.png.*different channels'):
        load(colour, low=0, high=255)


@pytest.mark.parametrize('low, high', [(21800, 25000), (-1, 2)])
def test_file_of_another_range_is_refused(load, low, high):
    grey = np.array([[3, 255]], np.uint8)
    with pytest.raises(
            ValueError,
            match=rf'frame.png.* 3 to 255 \(uint8\), all outside of low={low}'
    ):
        load(grey, low=low, high=high)


@pytest.mark.parametrize('low, high', [(255, 999), (-1, 3), (9, 99)])
def test_saturated_pixels_are_no_mistake(load, low, high):
    load(np.array([[3, 255]], np.uint8), low=low, high=high)


@pytest.mark.parametrize('content', [b'', b'no image'])
def test_file_that_is_no_image_is_named(tmp_path, content):
    path = tmp_path / 'broken.png'
    path.write_bytes(content)
    with pytest.raises(ValueError, match='cannot decode image .*broken.png'):
        LoadSingleChannelImage(low=0, high=1)(dict(img_path=str(path)))


@pytest.mark.parametrize('low, high', [(5, 5), (9, 2)])
def test_bounds_in_the_wrong_order_are_rejected(low, high):
    with pytest.raises(ValueError, match=f'low={low}, high={high}'):
        LoadSingleChannelImage(low=low, high=high)


def test_no_channel_is_rejected():
    with pytest.raises(ValueError, match='num_channels .*got 0'):
        LoadSingleChannelImage(low=0, high=1, num_channels=0)


def test_config_builds_it():
    transform = TRANSFORMS.build(
        dict(type='LoadSingleChannelImage', low=21800, high=25000))
    assert 'low=21800' in repr(transform)
