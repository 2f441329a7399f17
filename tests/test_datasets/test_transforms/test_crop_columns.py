# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from mmseg.datasets.transforms import Resize
from mmseg.registry import TRANSFORMS
from mmseg_mile.datasets.transforms import CropColumns


def frame():
    """4 x 10 image whose value is its column."""
    img = np.tile(np.arange(10, dtype=np.float32)[None, :, None], (4, 1, 3))
    return dict(
        img=img,
        img_shape=(4, 10),
        ori_shape=(4, 10),
        img_path='a.png',
        seg_fields=[])


def add_mask(results):
    results['gt_seg_map'] = np.tile(np.arange(10, dtype=np.uint8), (4, 1))
    results['seg_fields'].append('gt_seg_map')
    return results


def test_image_keeps_the_columns():
    img = CropColumns(3, 7)(frame())['img']
    assert img[0, :, 0].tolist() == [3, 4, 5, 6]


def test_both_shapes_shrink():
    results = CropColumns(3, 7)(frame())
    assert results['img_shape'] == results['ori_shape'] == (4, 4)


def test_mask_that_is_loaded_is_cropped_along():
    results = CropColumns(3, 7)(add_mask(frame()))
    assert results['gt_seg_map'][0].tolist() == [3, 4, 5, 6]


def test_mask_that_is_loaded_after_resizing_is_cropped_by_the_second_call():
    crop = CropColumns(3, 7)
    results = Resize(scale=(8, 8), keep_ratio=False)(crop(frame()))
    results = crop(add_mask(results))
    assert results['gt_seg_map'][0].tolist() == [3, 4, 5, 6]
    assert results['img'].shape == (8, 8, 3)
    assert results['ori_shape'] == (4, 4)


def test_second_call_changes_nothing():
    crop = CropColumns(3, 7)
    assert crop(crop(add_mask(frame())))['gt_seg_map'].shape == (4, 4)


def test_other_columns_later_are_rejected():
    with pytest.raises(ValueError, match=r'\[3, 7\].*\[0, 2\]'):
        CropColumns(0, 2)(CropColumns(3, 7)(frame()))


def test_narrow_image_is_rejected():
    with pytest.raises(ValueError, match=r"'a.png' has 10 columns.*\[3, 11\)"):
        CropColumns(3, 11)(frame())


def test_columns_scale_with_a_smaller_copy_of_the_frame():
    results = CropColumns(6, 14, full_width=20)(add_mask(frame()))
    assert results['img'][0, :, 0].tolist() == [3, 4, 5, 6]
    assert results['gt_seg_map'][0].tolist() == [3, 4, 5, 6]


def test_columns_beyond_the_full_width_are_rejected():
    with pytest.raises(ValueError, match='right=9, full_width=8'):
        CropColumns(3, 9, full_width=8)


def test_resized_image_is_rejected():
    resized = Resize(scale=(20, 8), keep_ratio=False)(frame())
    with pytest.raises(ValueError, match='right after loading'):
        CropColumns(3, 7)(resized)


@pytest.mark.parametrize('left, right', [(7, 3), (4, 4), (-1, 3)])
def test_empty_range_is_rejected(left, right):
    with pytest.raises(ValueError, match=f'left={left}, right={right}'):
        CropColumns(left, right)


def test_config_builds_it():
    transform = TRANSFORMS.build(
        dict(type='CropColumns', left=300, right=1710))
    assert 'right=1710' in repr(transform)
