# SPDX-License-Identifier: Apache-2.0
import pytest

from mmseg_mile.datasets import IDDDataset


@pytest.fixture
def put_part(put_image, put_mask):

    def put(parent: str, suffix: str, labels=('csTrainId', 'level3Id')):
        put_image(f'{parent}leftImg8bit/train/12/7_leftImg8bit.{suffix}')
        for label in labels:
            put_mask(f'{parent}gtFine/train/12/7_gtFine_label{label}s.png')

    return put


def test_both_parts_make_one_dataset(tmp_path, put_part, names_of):
    put_part('IDD_Segmentation/', 'png')
    put_part('idd20kII/', 'jpg')
    assert names_of(IDDDataset(str(tmp_path), 'train')) == [
        'IDD_Segmentation/leftImg8bit/train/12/7_leftImg8bit.png',
        'idd20kII/leftImg8bit/train/12/7_leftImg8bit.jpg'
    ]


@pytest.mark.parametrize('parent, suffix', [('IDD_Segmentation/', 'png'),
                                            ('idd20kII/', 'jpg'), ('', 'png'),
                                            ('', 'jpg')])
def test_one_part_is_enough(tmp_path, put_part, parent, suffix):
    put_part(parent, suffix)
    assert len(IDDDataset(str(tmp_path), 'train')) == 1


@pytest.mark.parametrize('space, mask, count',
                         [('cs_train_ids', '7_gtFine_labelcsTrainIds.png', 19),
                          ('level3', '7_gtFine_labellevel3Ids.png', 26)])
def test_label_space_chooses_masks_and_classes(tmp_path, put_part, pairs_of,
                                               space, mask, count):
    put_part('idd20kII/', 'jpg')
    dataset = IDDDataset(str(tmp_path), 'train', label_space=space)
    assert pairs_of(dataset) == [('7_leftImg8bit.jpg', mask)]
    assert len(dataset.metainfo['classes']) == count
    assert len(dataset.metainfo['palette']) == count


def test_classes_of_level3_can_be_chosen(tmp_path, put_part, labels_of):
    put_part('idd20kII/', 'jpg')
    dataset = IDDDataset(
        str(tmp_path),
        'train',
        label_space='level3',
        metainfo=dict(classes=('autorickshaw', 'road')))
    assert labels_of(dataset) == [1]


def test_unknown_label_space_is_rejected(tmp_path):
    with pytest.raises(ValueError, match="label_space.*'level3'.*'level2'"):
        IDDDataset(str(tmp_path), 'train', label_space='level2')


def test_missing_masks_name_the_converter(tmp_path, put_part):
    put_part('idd20kII/', 'jpg', labels=['csTrainId'])
    with pytest.raises(ValueError, match='dataset_converters/idd.py'):
        IDDDataset(str(tmp_path), 'train', label_space='level3')


def test_frame_of_both_parts_is_named_with_its_part(tmp_path, put_part,
                                                    names_of):
    put_part('IDD_Segmentation/', 'png')
    put_part('idd20kII/', 'jpg')
    (tmp_path / 'few.txt').write_text('idd20kII/leftImg8bit/train/12/7\n')
    dataset = IDDDataset(str(tmp_path), 'train', ann_file='few.txt')
    assert names_of(dataset) == [
        'idd20kII/leftImg8bit/train/12/7_leftImg8bit.jpg'
    ]


def test_ambiguous_frame_is_rejected(tmp_path, put_part):
    put_part('IDD_Segmentation/', 'png')
    put_part('idd20kII/', 'jpg')
    (tmp_path / 'few.txt').write_text('12/7\n')
    with pytest.raises(ValueError, match="'12/7' names 2 frames"):
        IDDDataset(str(tmp_path), 'train', ann_file='few.txt')
