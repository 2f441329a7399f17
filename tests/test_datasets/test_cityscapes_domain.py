# SPDX-License-Identifier: Apache-2.0
import pytest

from mmseg.registry import DATASETS
from mmseg_mile.datasets.driving import CityscapesDomainDataset

IMAGE = 'leftImg8bit/val/bonn/bonn_0_leftImg8bit.png'


def test_images_and_train_id_masks_are_paired(tmp_path, put_image, put_mask,
                                              pairs_of):
    put_image(IMAGE)
    put_mask('gtFine/val/bonn/bonn_0_gtFine_labelTrainIds.png',
             'gtFine/val/bonn/bonn_0_gtFine_labelIds.png')
    dataset = CityscapesDomainDataset(str(tmp_path), 'val')
    assert pairs_of(dataset) == [('bonn_0_leftImg8bit.png',
                                  'bonn_0_gtFine_labelTrainIds.png')]


def test_raw_ids_alone_name_the_converter(tmp_path, put_image, put_mask):
    put_image(IMAGE)
    put_mask('gtFine/val/bonn/bonn_0_gtFine_labelIds.png')
    command = 'tools/dataset_converters/cityscapes.py ' + str(tmp_path)
    with pytest.raises(ValueError, match=command):
        CityscapesDomainDataset(str(tmp_path), 'val')


def test_config_builds_it(tmp_path):
    dataset = DATASETS.build(
        dict(
            type='CityscapesDomainDataset',
            data_root=str(tmp_path),
            split='val',
            lazy_init=True))
    assert len(dataset.metainfo['classes']) == 19
