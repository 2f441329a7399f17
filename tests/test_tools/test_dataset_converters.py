# SPDX-License-Identifier: Apache-2.0
import importlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmseg_mile.datasets import HeatNetDataset, IDDDataset

FOLDER = Path(__file__).parents[2] / 'tools' / 'dataset_converters'


def load(name):
    """The script as a module, as ``python FOLDER/name.py`` runs it."""
    spec = importlib.util.spec_from_file_location(f'{name}_converter',
                                                  FOLDER / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_image(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_polygons(path, *labels):
    """One column of 4 rows per label, from left to right."""
    objects = [
        dict(label=label, polygon=[[x, 0], [x, 3]])
        for x, label in enumerate(labels)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            dict(imgHeight=4, imgWidth=len(labels) + 1, objects=objects)))


def first_row(path):
    return np.asarray(Image.open(path))[0].tolist()


@pytest.fixture
def cityscapes_stem(tmp_path):
    return tmp_path / 'gtFine' / 'train' / 'ulm' / 'ulm_0_gtFine'


def test_cityscapes_raw_ids_become_train_ids(tmp_path, cityscapes_stem):
    raw = np.array([[0, 7, 8, 26, 29, 33, 255]], np.uint8)
    write_image(Path(f'{cityscapes_stem}_labelIds.png'), raw)
    load('cityscapes').main([str(tmp_path)])
    assert first_row(f'{cityscapes_stem}_labelTrainIds.png') == [
        255, 0, 1, 13, 255, 18, 255
    ]


def test_cityscapes_polygons_become_train_ids(tmp_path, cityscapes_stem):
    write_polygons(
        Path(f'{cityscapes_stem}_polygons.json'), 'road', 'cargroup',
        'license plate', 'caravan', 'bicycle')
    load('cityscapes').main([str(tmp_path)])
    assert first_row(f'{cityscapes_stem}_labelTrainIds.png') == [
        0, 13, 255, 255, 18, 255
    ]


def test_cityscapes_without_annotations_is_rejected(tmp_path):
    with pytest.raises(ValueError, match='gtFine_trainvaltest.zip'):
        load('cityscapes').main([str(tmp_path)])


def test_finished_masks_are_kept(tmp_path, cityscapes_stem):
    write_polygons(Path(f'{cityscapes_stem}_polygons.json'), 'road')
    done = Path(f'{cityscapes_stem}_labelTrainIds.png')
    write_image(done, np.array([[7]], np.uint8))
    load('cityscapes').main([str(tmp_path)])
    assert first_row(done) == [7]


def test_finished_masks_are_overwritten_on_request(tmp_path, cityscapes_stem):
    write_polygons(Path(f'{cityscapes_stem}_polygons.json'), 'road')
    done = Path(f'{cityscapes_stem}_labelTrainIds.png')
    write_image(done, np.array([[7]], np.uint8))
    load('cityscapes').main([str(tmp_path), '--overwrite'])
    assert first_row(done) == [0, 255]


IDD_LABELS = ('road', 'parking', 'non-drivable fallback', 'autorickshaw',
              'cargroup', 'polegroup', 'traffic sign', 'traffic light',
              'vehicle fallback', 'license plate')


def test_idd_masks_of_both_label_spaces_and_parts(tmp_path):
    stems = [
        tmp_path / part / 'gtFine' / 'train' / '0' / '1_gtFine'
        for part in ('IDD_Segmentation', 'idd20kII')
    ]
    for stem in stems:
        write_polygons(Path(f'{stem}_polygons.json'), *IDD_LABELS)
    load('idd').main([str(tmp_path)])
    for stem in stems:
        assert first_row(f'{stem}_labelcsTrainIds.png') == [
            0, 255, 9, 255, 13, 255, 7, 6, 255, 255, 255
        ]
        assert first_row(f'{stem}_labellevel3Ids.png') == [
            0, 1, 3, 8, 9, 20, 18, 19, 12, 255, 255
        ]


def test_idd_masks_are_what_the_dataset_looks_for(tmp_path):
    write_polygons(tmp_path / 'gtFine/val/0/1_gtFine_polygons.json', 'road')
    write_image(tmp_path / 'leftImg8bit/val/0/1_leftImg8bit.jpg',
                np.zeros((4, 2, 3), np.uint8))
    load('idd').main([str(tmp_path)])
    for space in ('cs_train_ids', 'level3'):
        assert len(IDDDataset(str(tmp_path), 'val', label_space=space)) == 1


def test_idd_unknown_label_names_the_file(tmp_path):
    write_polygons(tmp_path / 'gtFine/val/0/1_gtFine_polygons.json', 'tram')
    with pytest.raises(ValueError, match="1_gtFine_polygons.json.*'tram'"):
        load('idd').main([str(tmp_path)])


def test_idd_without_annotations_is_rejected(tmp_path):
    with pytest.raises(ValueError, match='IDD_Segmentation or idd20kII'):
        load('idd').main([str(tmp_path)])


@pytest.fixture
def put_array(tmp_path):

    def put(array):
        folder = tmp_path / 'test' / 'day' / 'SegmentationClass'
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / 'fl_1_5_rgb.npy', array)
        return folder / 'fl_1_5_rgb.png'

    return put


def test_heatnet_arrays_become_masks(tmp_path, put_array):
    mask = put_array(np.arange(14, dtype=np.int64)[None])
    load('heatnet').main([str(tmp_path)])
    assert first_row(mask) == list(range(14))


def test_heatnet_masks_are_what_the_dataset_looks_for(tmp_path, put_array):
    put_array(np.zeros((4, 6), np.int32))
    write_image(tmp_path / 'test/day/ImagesIR/fl_1_5_ir.png',
                np.zeros((4, 6), np.uint8))
    load('heatnet').main([str(tmp_path)])
    assert len(HeatNetDataset(str(tmp_path), 'test', modality='thermal')) == 1


@pytest.mark.parametrize('wrong', [-1, 14, 2.5])
def test_heatnet_value_outside_its_ids_is_rejected(tmp_path, put_array, wrong):
    mask = put_array(np.array([[0, wrong]]))
    with pytest.raises(ValueError, match=f'fl_1_5_rgb.npy.*{wrong}.*labelme'):
        load('heatnet').main([str(tmp_path)])
    assert not mask.exists()


def test_heatnet_array_of_three_axes_is_rejected(tmp_path, put_array):
    put_array(np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match=r'\(2, 2, 3\)'):
        load('heatnet').main([str(tmp_path)])


def test_heatnet_other_order_of_names_is_warned_of(tmp_path, put_array):
    put_array(np.zeros((2, 2), int))
    names = tmp_path / 'test/day/class_names.txt'
    names.write_text('__ignore__\n_background_\nroad\nsidewalk\n')
    with pytest.warns(UserWarning, match="'__ignore__' instead of 'road'"):
        load('heatnet').main([str(tmp_path)])
    names.write_text('road\nsidewalk\n', encoding='utf-16')
    with pytest.warns(UserWarning, match="class_names.* instead of 'road'"):
        load('heatnet').main([str(tmp_path)])


def test_heatnet_own_names_raise_no_warning(tmp_path, put_array, recwarn):
    put_array(np.zeros((2, 2), int))
    script = load('heatnet')
    (tmp_path / 'test/class_names.txt').write_text('\n'.join(
        f'{name}, and more' for name in script.NAMES))
    script.main([str(tmp_path)])
    assert not [w for w in recwarn if 'class_names' in str(w.message)]


def test_heatnet_without_arrays_is_rejected(tmp_path):
    with pytest.raises(ValueError, match='SegmentationClass'):
        load('heatnet').main([str(tmp_path)])


def test_several_processes_give_the_same_masks(tmp_path, cityscapes_stem,
                                               monkeypatch):
    for index in range(3):
        write_polygons(
            Path(f'{cityscapes_stem}{index}_gtFine_polygons.json'), 'car')
    # Workers must be able to import the script by name.
    monkeypatch.syspath_prepend(FOLDER)
    importlib.import_module('cityscapes').main([str(tmp_path), '--nproc', '2'])
    assert [
        first_row(f'{cityscapes_stem}{index}_gtFine_labelTrainIds.png')
        for index in range(3)
    ] == [[13, 255]] * 3
