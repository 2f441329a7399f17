# SPDX-License-Identifier: Apache-2.0
import pytest

from mmseg_mile.datasets.driving import BDD100KDomainDataset


@pytest.mark.parametrize('parent', ['', 'bdd100k/'])
def test_new_layout(tmp_path, put_image, put_mask, pairs_of, parent):
    put_image(parent + 'images/10k/train/7d.jpg')
    put_mask(parent + 'labels/sem_seg/masks/train/7d.png')
    dataset = BDD100KDomainDataset(str(tmp_path), 'train')
    assert pairs_of(dataset) == [('7d.jpg', '7d.png')]


@pytest.mark.parametrize('parent', ['', 'bdd100k/'])
def test_old_layout(tmp_path, put_image, put_mask, pairs_of, parent):
    put_image(parent + 'seg/images/val/7d.jpg')
    put_mask(parent + 'seg/labels/val/7d_train_id.png')
    dataset = BDD100KDomainDataset(str(tmp_path), 'val')
    assert pairs_of(dataset) == [('7d.jpg', '7d_train_id.png')]


def test_the_100k_images_are_not_looked_at(tmp_path, put_image):
    put_image('images/100k/train/7d.jpg')
    with pytest.raises(ValueError, match='missing folder .*images/10k/train'):
        BDD100KDomainDataset(str(tmp_path), 'train')
