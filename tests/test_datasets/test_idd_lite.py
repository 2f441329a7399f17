# SPDX-License-Identifier: Apache-2.0
import pytest

from mmseg_mile.datasets.driving import IDDLiteDataset


def test_images_and_masks_are_paired(tmp_path, put_image, put_mask, pairs_of):
    put_image('leftImg8bit/train/131/547407_image.jpg')
    put_mask('gtFine/train/131/547407_label.png',
             'gtFine/train/131/547407_inst_label.png')
    dataset = IDDLiteDataset(str(tmp_path), 'train')
    assert pairs_of(dataset) == [('547407_image.jpg', '547407_label.png')]


def test_there_are_seven_classes(tmp_path):
    dataset = IDDLiteDataset(str(tmp_path), 'val', lazy_init=True)
    assert len(dataset.metainfo['classes']) == 7


def test_no_stand_in_is_promised(tmp_path):
    with pytest.raises(ValueError) as caught:
        IDDLiteDataset(str(tmp_path), 'val')
    assert 'make_demo_data' not in str(caught.value)
