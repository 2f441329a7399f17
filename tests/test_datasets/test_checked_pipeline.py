# SPDX-License-Identifier: Apache-2.0
import pickle

import cv2
import numpy as np
import pytest
from mmengine.dataset import ConcatDataset, RepeatDataset

from mmseg_mile.datasets.checked_pipeline import CheckedPipeline, check_dataset
from mmseg_mile.datasets.driving import CityscapesDomainDataset

STEPS = [
    dict(type='mmcv.LoadImageFromFile'),
    dict(type='mmseg.LoadAnnotations'),
    dict(type='mmseg.PackSegInputs')
]
IMAGE = 'leftImg8bit/train/ulm/a_leftImg8bit.png'
MASK = 'gtFine/train/ulm/a_gtFine_labelTrainIds.png'


@pytest.fixture
def make(tmp_path, put_image, put_mask):

    def make(values=(0, 18, 255), steps=STEPS):
        put_image(IMAGE)
        put_mask(MASK, values=values)
        return CityscapesDomainDataset(str(tmp_path), 'train', pipeline=steps)

    return make


def test_good_sample_passes_unchanged(make):
    dataset = make()
    expected = dataset[0]['data_samples'].gt_sem_seg.data
    check_dataset(dataset, num_classes=19)
    assert (dataset[0]['data_samples'].gt_sem_seg.data == expected).all()


def test_label_beyond_the_classes_is_rejected(make):
    dataset = make(values=(0, 19, 34))
    check_dataset(dataset, num_classes=19)
    with pytest.raises(
            ValueError,
            match=r'a_gtFine_labelTrainIds.png.*'
            r'\[19, 34\].*0 to 18, or 255'):
        dataset[0]


def test_other_ignore_index_is_respected(make):
    dataset = make(values=(0, 40))
    check_dataset(dataset, num_classes=19, ignore_index=40)
    dataset[0]


def test_label_is_checked_before_packing_too(make):
    dataset = make(values=(0, 19), steps=STEPS[:2])
    check_dataset(dataset, num_classes=19)
    with pytest.raises(ValueError, match=r'\[19\]'):
        dataset[0]


@pytest.mark.parametrize('broken', [IMAGE, MASK])
def test_broken_file_is_named_with_its_partner(make, tmp_path, broken):
    dataset = make()
    check_dataset(dataset, num_classes=19)
    (tmp_path / broken).write_bytes(b'no image')
    with pytest.raises(ValueError) as caught:
        dataset[0]
    assert IMAGE in str(caught.value) and MASK in str(caught.value)
    assert caught.value.__cause__ is not None


def test_mask_of_another_size_is_rejected(make, tmp_path):
    dataset = make()
    check_dataset(dataset, num_classes=19)
    cv2.imwrite(str(tmp_path / MASK), np.zeros((8, 12), np.uint8))
    with pytest.raises(ValueError, match=r'\(8, 12\).*\(4, 6\)'):
        dataset[0]


@pytest.mark.parametrize('size', [(8, 12), (3, 5)])
def test_crop_does_not_hide_a_mask_of_another_size(make, tmp_path, size):
    crop = dict(type='mmseg.RandomCrop', crop_size=(2, 2))
    dataset = make(steps=[*STEPS[:2], crop, STEPS[2]])
    check_dataset(dataset, num_classes=19)
    dataset[0]
    cv2.imwrite(str(tmp_path / MASK), np.zeros(size, np.uint8))
    with pytest.raises(ValueError, match=r'image .* is \(4, 6\): both files'):
        dataset[0]


def test_mask_of_several_channels_is_rejected(make, tmp_path):
    dataset = make()
    check_dataset(dataset, num_classes=19)
    cv2.imwrite(str(tmp_path / MASK), np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(ValueError, match=r'\(4, 6, 3\), not rows and columns'):
        dataset[0]


def test_mask_of_more_than_8_bits_is_rejected(make, tmp_path):
    dataset = make()
    check_dataset(dataset, num_classes=19)
    cv2.imwrite(str(tmp_path / MASK), np.full((4, 6), 256, np.uint16))
    with pytest.raises(ValueError, match='more than 8 bits'):
        dataset[0]


def test_mask_may_keep_the_size_of_the_file(make):
    resize = dict(type='mmseg.Resize', scale=(12, 8))
    dataset = make(steps=[STEPS[0], resize, *STEPS[1:]])
    check_dataset(dataset, num_classes=19)
    sample = dataset[0]
    assert sample['inputs'].shape == (3, 8, 12)
    assert sample['data_samples'].gt_sem_seg.shape == (4, 6)


def test_step_that_drops_the_sample_may_do_so():

    class Drop:

        transforms = [lambda data: None]

    assert CheckedPipeline(Drop(), num_classes=2)({}) is None


def test_second_installation_replaces_the_first(make):
    dataset = make()
    check_dataset(dataset, num_classes=2)
    check_dataset(dataset, num_classes=19)
    assert not isinstance(dataset.pipeline.pipeline, CheckedPipeline)
    dataset[0]


@pytest.mark.parametrize('wrap', [
    lambda dataset: ConcatDataset([dataset]),
    lambda dataset: RepeatDataset(dataset, times=2)
])
def test_datasets_in_wrappers_are_checked(make, wrap):
    dataset = wrap(make(values=(0, 19)))
    check_dataset(dataset, num_classes=19)
    with pytest.raises(ValueError, match=r'\[19\]'):
        dataset[0]


def test_something_else_is_rejected():
    with pytest.raises(ValueError, match='cannot check a list'):
        check_dataset([], num_classes=2)


def test_checked_dataset_survives_pickling(make):
    dataset = make(values=(0, 19))
    check_dataset(dataset, num_classes=19)
    with pytest.raises(ValueError, match=r'\[19\]'):
        pickle.loads(pickle.dumps(dataset))[0]


def test_steps_stay_reachable(make):
    dataset = make()
    check_dataset(dataset, num_classes=19)
    assert len(dataset.pipeline.transforms) == 3
