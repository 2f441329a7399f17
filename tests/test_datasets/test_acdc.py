# SPDX-License-Identifier: Apache-2.0
import pytest

from mmseg_mile.datasets.driving import ACDCDataset

FOLDERS = [
    ('rgb_anon', 'gt'),
    ('rgb_anon_trainvaltest/rgb_anon', 'gt_trainval/gt'),
]


@pytest.fixture(params=FOLDERS)
def root(request, tmp_path, put_image, put_mask):
    images, masks = request.param
    for condition in ('fog', 'night', 'rain', 'snow'):
        for split in ('train', 'val'):
            stem = f'{condition}/{split}/GOPR01/{condition}_frame_000001'
            put_image(f'{images}/{stem}_rgb_anon.png')
            put_mask(f'{masks}/{stem}_gt_labelTrainIds.png',
                     f'{masks}/{stem}_gt_invIds.png')
        put_image(f'{images}/{condition}/train_ref/GOPR01/'
                  f'{condition}_frame_000001_rgb_ref_anon.png')
    return str(tmp_path)


def images(dataset, pairs_of):
    return [image.split('_')[0] for image, _ in pairs_of(dataset)]


def test_one_condition(root, pairs_of):
    dataset = ACDCDataset(root, 'train', condition='night')
    assert images(dataset, pairs_of) == ['night']


def test_several_conditions(root, pairs_of):
    dataset = ACDCDataset(root, 'val', condition=['snow', 'fog'])
    assert images(dataset, pairs_of) == ['fog', 'snow']


def test_all_conditions_without_reference_images(root, pairs_of):
    dataset = ACDCDataset(root, 'train', condition='all')
    assert images(dataset, pairs_of) == ['fog', 'night', 'rain', 'snow']


def test_masks_hold_train_ids(root, pairs_of):
    masks = [mask for _, mask in pairs_of(ACDCDataset(root, 'val'))]
    assert all(mask.endswith('_gt_labelTrainIds.png') for mask in masks)


@pytest.mark.parametrize('condition, domain',
                         [('fog', 'acdc_fog'), ('all', 'acdc'),
                          (['rain', 'night'], 'acdc_night_rain')])
def test_domain_is_named_after_the_condition(tmp_path, condition, domain):
    dataset = ACDCDataset(
        str(tmp_path), 'val', condition=condition, lazy_init=True)
    assert dataset.metainfo['domain'] == domain


@pytest.mark.parametrize('condition', ['sun', ['fog', 'sun'], []])
def test_unknown_condition_is_rejected(tmp_path, condition):
    with pytest.raises(ValueError, match='condition must be one of'):
        ACDCDataset(str(tmp_path), 'val', condition=condition)


def test_missing_masks_name_both_layouts(tmp_path, put_image):
    put_image('rgb_anon/fog/val/GOPR01/a_rgb_anon.png')
    with pytest.raises(ValueError, match='missing folder .*gt_trainval/gt'):
        ACDCDataset(str(tmp_path), 'val', condition='fog')
