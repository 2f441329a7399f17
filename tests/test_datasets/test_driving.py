# SPDX-License-Identifier: Apache-2.0
"""The common ground, by way of its plainest subclass."""
import pickle

import pytest

from mmseg_mile.datasets.driving import CityscapesDomainDataset

IMAGE = 'leftImg8bit/train/ulm/ulm_{}_leftImg8bit.png'
MASK = 'gtFine/train/ulm/ulm_{}_gtFine_labelTrainIds.png'


@pytest.fixture
def root(tmp_path, put_image, put_mask):
    for index in range(3):
        put_image(IMAGE.format(index))
        put_mask(MASK.format(index), values=[0, 13, 255])
    return str(tmp_path)


def build(root, **kwargs):
    return CityscapesDomainDataset(data_root=root, split='train', **kwargs)


def test_entries_are_those_of_mmseg(root):
    info = build(root, serialize_data=False).data_list[0]
    assert set(info) == {
        'img_path', 'seg_map_path', 'sequence', 'label_map',
        'reduce_zero_label', 'seg_fields'
    }


def test_domain_comes_from_the_config(root):
    assert build(root, domain='rainy').metainfo['domain'] == 'rainy'


def test_domain_defaults_to_the_dataset(root):
    assert build(root).metainfo['domain'] == 'cityscapes'


def test_modality_defaults_to_rgb(root):
    assert build(root).metainfo['modality'] == 'rgb'


def test_unknown_modality_is_rejected(root):
    with pytest.raises(ValueError, match="modality must be one of.*'radar'"):
        build(root, modality='radar')


def test_unknown_split_is_rejected(root):
    with pytest.raises(ValueError, match=r"split.*'train', 'val'.*'test'"):
        CityscapesDomainDataset(data_root=root, split='test')


@pytest.mark.parametrize('name',
                         ['data_prefix', 'img_suffix', 'reduce_zero_label'])
def test_argument_that_the_layout_answers_is_rejected(root, name):
    with pytest.raises(ValueError, match=f'{name}.*remove'):
        build(root, **{name: 'x'})


def test_missing_root_is_named(tmp_path):
    with pytest.raises(ValueError, match='missing folder .*nowhere'):
        build(str(tmp_path / 'nowhere'))


def test_missing_folder_says_layout_source_and_stand_in(tmp_path, put_image):
    put_image(IMAGE.format(0))
    with pytest.raises(ValueError) as caught:
        build(str(tmp_path))
    text = str(caught.value)
    assert repr(str(tmp_path / 'gtFine/train')) in text
    assert 'leftImg8bit/{train,val}' in text
    assert 'cityscapes-dataset.com' in text
    assert 'python tools/make_demo_data.py data/demo' in text


def test_empty_split_is_rejected(tmp_path):
    (tmp_path / 'leftImg8bit/train').mkdir(parents=True)
    (tmp_path / 'gtFine/train').mkdir(parents=True)
    with pytest.raises(ValueError, match="found 0 images of split 'train'"):
        build(str(tmp_path))


def test_image_without_mask_is_rejected_with_counts(root, tmp_path):
    (tmp_path / MASK.format(1)).unlink()
    with pytest.raises(ValueError, match='1 of 3 images.*ulm_1_leftImg8bit'):
        build(root)


def test_mask_without_image_does_no_harm(root, put_mask):
    put_mask(MASK.format(9))
    assert len(build(root)) == 3


def test_lazy_init_looks_for_no_file(tmp_path):
    build(str(tmp_path / 'nowhere'), lazy_init=True)


def test_lazy_dataset_is_filled_on_full_init(root):
    dataset = build(root, lazy_init=True)
    dataset.full_init()
    assert len(dataset) == 3


def test_indices_choose_frames(root, pairs_of):
    dataset = build(root, indices=[2])
    assert pairs_of(dataset) == [('ulm_2_leftImg8bit.png',
                                  'ulm_2_gtFine_labelTrainIds.png')]


def test_ann_file_chooses_frames_in_its_order(root, tmp_path, pairs_of):
    # as editors of Windows save UTF-8
    text = '\ufeffulm/ulm_2\r\nulm_0\r\n'
    (tmp_path / 'few.txt').write_bytes(text.encode())
    images = [image for image, _ in pairs_of(build(root, ann_file='few.txt'))]
    assert images == ['ulm_2_leftImg8bit.png', 'ulm_0_leftImg8bit.png']


def test_ann_file_rescues_partly_labelled_data(root, tmp_path):
    (tmp_path / MASK.format(1)).unlink()
    (tmp_path / 'few.txt').write_text('ulm_0\nulm_2\n')
    assert len(build(root, ann_file='few.txt')) == 2


def test_ann_file_with_unknown_frame_is_rejected(root, tmp_path):
    (tmp_path / 'few.txt').write_text('# x\nulm_7\n')
    with pytest.raises(
            ValueError, match="'# x' names 0 frames .* such as 'ulm_[012]'"):
        build(root, ann_file='few.txt')


def test_ann_file_that_is_no_utf_8_is_named(root, tmp_path):
    (tmp_path / 'few.txt').write_text('ulm_0\n', encoding='utf-16')
    with pytest.raises(ValueError, match='few.txt.* no UTF-8 text .*save'):
        build(root, ann_file='few.txt')


def test_missing_ann_file_is_rejected(root):
    with pytest.raises(ValueError, match='few.txt.*does not exist'):
        build(root, ann_file='few.txt')


def test_chosen_classes_are_renumbered_and_the_rest_ignored(root, labels_of):
    dataset = build(root, metainfo=dict(classes=('sky', 'car')))
    assert labels_of(dataset) == [1, 255]


def test_palette_follows_reordered_classes(root):
    dataset = build(root, metainfo=dict(classes=('car', 'road')))
    assert dataset.metainfo['palette'] == [[0, 0, 142], [128, 64, 128]]


def test_palette_of_the_config_is_kept(root):
    own = dict(classes=('car', ), palette=[[1, 2, 3]])
    dataset = build(root, metainfo=own)
    assert dataset.metainfo['palette'] == [[1, 2, 3]]


def test_palette_of_another_length_is_rejected(root):
    with pytest.raises(ValueError, match='1 colours for 19 classes'):
        build(root, metainfo=dict(palette=[[1, 2, 3]]))


def test_unknown_class_is_rejected(root):
    with pytest.raises(ValueError, match=r"\['tram'\].*choose from"):
        build(root, metainfo=dict(classes=('car', 'tram')))


def test_all_classes_need_no_label_map(root):
    assert build(root).label_map is None


def test_pipeline_yields_a_packed_sample(root):
    steps = [
        dict(type='mmcv.LoadImageFromFile'),
        dict(type='mmseg.LoadAnnotations'),
        dict(type='mmseg.PackSegInputs')
    ]
    sample = build(root, pipeline=steps)[0]
    assert sample['data_samples'].gt_sem_seg.shape == (4, 6)


def test_test_mode_is_accepted(root):
    assert build(root, test_mode=True).test_mode


def test_dataset_survives_pickling(root):
    assert len(pickle.loads(pickle.dumps(build(root)))) == 3
