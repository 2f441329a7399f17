# SPDX-License-Identifier: Apache-2.0
"""The sequence of an image, in the layout of every dataset."""
import pytest

from mmseg.datasets import BaseSegDataset
from mmseg_mile.datasets import (ACDCDataset, BDD100KDomainDataset,
                                 CamVidDataset, CityscapesDomainDataset,
                                 HeatNetDataset, IDDDataset, IDDLiteDataset,
                                 check_dataset)
from mmseg_mile.datasets.driving import sequence_of

CITY = 'leftImg8bit/train/{0}/{0}_{1}_leftImg8bit.png'
ACDC = 'rgb_anon/night/train/{0}/{0}_frame_000041_rgb_anon.png'
HEAT = 'seq_01_day/03/{0}/{0}_1570722159_952655337.png'


@pytest.mark.parametrize('dataset, split, image, sequence', [
    (CamVidDataset, 'train', 'train/0006R0_f00930.png', '0006R0'),
    (CamVidDataset, 'val', 'val/0016E5_07959.jpg', '0016E5'),
    (CamVidDataset, 'test', 'test/Seq05VD_f00000.png', 'Seq05VD'),
    (IDDLiteDataset, 'train', 'leftImg8bit/train/104/024541_image.jpg', '104'),
    (IDDDataset, 'train',
     'IDD_Segmentation/leftImg8bit/train/12/7_leftImg8bit.png', '12'),
    (IDDDataset, 'train', 'idd20kII/leftImg8bit/train/201/7_leftImg8bit.jpg',
     '201'),
    (CityscapesDomainDataset, 'train', CITY.format('aachen',
                                                   '000000_000019'), 'aachen'),
    (CityscapesDomainDataset, 'train', CITY.format('aachen',
                                                   '000001_000019'), 'aachen'),
    (ACDCDataset, 'train', ACDC.format('GOPR0376'), 'GOPR0376'),
    (ACDCDataset, 'train', ACDC.format('GP010376'), 'GOPR0376'),
    (ACDCDataset, 'train', ACDC.format('GP020397'), 'GOPR0397'),
    (BDD100KDomainDataset, 'val', 'images/10k/val/7d06fefd-f7be05a6.jpg',
     '7d06fefd-f7be05a6'),
    (HeatNetDataset, 'train', 'train/' + HEAT.format('fl_rgb'), 'seq_01_day'),
    (HeatNetDataset, 'train', 'train/' + HEAT.format('fl_ir_aligned'),
     'seq_01_day'),
    (HeatNetDataset, 'test', 'test/night/ImagesRGB/a_15_95_rgb.png', 'night'),
])
def test_name_of_the_sequence(dataset, split, image, sequence):
    lazy = dataset('/data/own', split, lazy_init=True)
    assert lazy.sequence_of(f'/data/own/{image}') == sequence


def test_entries_and_samples_name_their_sequence(tmp_path, put_image,
                                                 put_mask):
    put_image('train/0016E5_00480.png')
    put_mask('trainannot/0016E5_00480.png')
    dataset = CamVidDataset(
        str(tmp_path),
        'train',
        lighting='day',
        pipeline=[
            dict(type='mmcv.LoadImageFromFile'),
            dict(type='mmseg.LoadAnnotations'),
            dict(type='mmseg.PackSegInputs')
        ])
    assert sequence_of(dataset.get_data_info(0)) == '0016E5'
    check_dataset(dataset, 11)
    assert dataset[0]['data_samples'].sequence == '0016E5'


def test_sequence_of_a_plain_dataset_is_the_folder(tmp_path, put_image):
    put_image('images/a/1.png', 'images/b/1.png')
    dataset = BaseSegDataset(
        data_root=str(tmp_path),
        img_suffix='.png',
        data_prefix=dict(img_path='images'),
        metainfo=dict(classes=('road', )),
        pipeline=[
            dict(type='mmcv.LoadImageFromFile'),
            dict(type='mmseg.PackSegInputs')
        ])
    folders = [str(tmp_path / 'images' / name) for name in 'ab']
    assert [sequence_of(dataset.get_data_info(i)) for i in (0, 1)] == folders
    check_dataset(dataset, 1)
    assert dataset[1]['data_samples'].sequence == folders[1]
