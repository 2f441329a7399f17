# SPDX-License-Identifier: Apache-2.0
import pytest

from mmseg_mile.datasets.driving import CamVidDataset

# Last dusk frame of train, first one of val, and one that only the folder
# of the public copy's test split has.
DUSK_TRAIN, DUSK_VAL, DUSK_TEST = ('0001TP_008100', '0001TP_008130',
                                   '0001TP_008550')


@pytest.fixture
def root(tmp_path, put_image, put_mask):
    for folder, names in dict(
            train=['0006R0_f00930', '0016E5_00480', DUSK_TRAIN, DUSK_VAL],
            val=['0016E5_07959'],
            test=['Seq05VD_f00000', DUSK_TEST]).items():
        put_image(*(f'{folder}/{name}.jpg' for name in names))
        put_mask(
            *(f'{folder}annot/{name}.png' for name in names), values=range(12))
    return str(tmp_path)


FRAMES = [
    ('train', 'day', ['0006R0_f00930', '0016E5_00480']),
    ('train', 'dusk', [DUSK_TRAIN]),
    ('train', 'all', [DUSK_TRAIN, '0006R0_f00930', '0016E5_00480']),
    ('val', 'day', ['0016E5_07959']),
    ('val', 'dusk', [DUSK_VAL]),
    ('val', 'all', [DUSK_VAL, '0016E5_07959']),
    ('test', 'day', ['Seq05VD_f00000']),
    ('test', 'dusk', [DUSK_TEST]),
]


@pytest.mark.parametrize('split, lighting, frames', FRAMES)
def test_split_and_lighting(root, pairs_of, split, lighting, frames):
    dataset = CamVidDataset(root, split, lighting=lighting)
    assert pairs_of(dataset) == [(f'{frame}.jpg', f'{frame}.png')
                                 for frame in frames]


def test_png_images_are_found(tmp_path, put_image, put_mask, pairs_of):
    put_image('val/0016E5_07959.png')
    put_mask('valannot/0016E5_07959.png')
    dataset = CamVidDataset(str(tmp_path), 'val', lighting='day')
    assert pairs_of(dataset) == [('0016E5_07959.png', '0016E5_07959.png')]


def test_void_is_ignored(root, labels_of):
    dataset = CamVidDataset(root, 'val', lighting='day')
    assert labels_of(dataset) == [*range(11), 255]


def test_labels_of_idd_lite(root, labels_of):
    dataset = CamVidDataset(
        root, 'val', lighting='day', label_space='idd_lite')
    assert labels_of(dataset) == [0, 1, 2, 3, 4, 5, 6, 255]


def test_each_class_goes_to_its_idd_lite_class(tmp_path):
    dataset = CamVidDataset(
        str(tmp_path), 'val', label_space='idd_lite', lazy_init=True)
    # Tree (5) is a far object, 5 as well, and needs no entry.
    new_ids = dict(enumerate([6, 5, 4, 0, 1, 5, 4, 4, 3, 2, 255, 255]))
    del new_ids[5]
    assert dataset.label_map == new_ids


def test_classes_of_idd_lite_can_be_chosen(root, labels_of):
    dataset = CamVidDataset(
        root,
        'val',
        lighting='day',
        label_space='idd_lite',
        metainfo=dict(classes=('sky', 'drivable')))
    assert labels_of(dataset) == [0, 1, 255]
    # Sky is 0 on disk already; road is drivable, the second choice.
    assert 0 not in dataset.label_map and dataset.label_map[3] == 1


def test_domain_is_named_after_the_lighting(tmp_path):
    dataset = CamVidDataset(
        str(tmp_path), 'val', lighting='dusk', lazy_init=True)
    assert dataset.metainfo['domain'] == 'camvid_dusk'


def test_unknown_lighting_is_rejected(root):
    with pytest.raises(ValueError, match="lighting.*'dusk'.*'night'"):
        CamVidDataset(root, 'val', lighting='night')


def test_unknown_label_space_is_rejected(root):
    with pytest.raises(ValueError, match="label_space.*'idd_lite'.*'voc'"):
        CamVidDataset(root, 'val', label_space='voc')
