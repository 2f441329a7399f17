# SPDX-License-Identifier: Apache-2.0
import re

import cv2
import numpy as np
import pytest
from PIL import Image

from mmseg_mile.datasets.demo import write_acdc, write_cityscapes
from mmseg_mile.datasets.demo.writers import wide_size
from mmseg_mile.datasets.idd import draw_polygons, read_polygons
from mmseg_mile.datasets.label_tables import (CITYSCAPES_RAW_TO_TRAIN_ID,
                                              HEATNET_IGNORE,
                                              IDD_NAME_TO_CS_TRAIN_ID,
                                              IDD_NAME_TO_LEVEL3_ID)

# One pattern per kind of file; every file must match exactly one.
LAYOUTS = dict(
    cityscapes=(
        r'leftImg8bit/(train|val)/(\w+)/\2_\d{6}_\d{6}_leftImg8bit\.png',
        r'gtFine/(train|val)/(\w+)/\2_\d{6}_\d{6}_gtFine_'
        r'(labelIds\.png|labelTrainIds\.png|polygons\.json)'),
    acdc=(r'rgb_anon/(fog|night|rain|snow)/(train|val)/(GOPR\d{4})/'
          r'\3_frame_\d{6}_rgb_anon\.png',
          r'gt/(fog|night|rain|snow)/(train|val)/(GOPR\d{4})/'
          r'\3_frame_\d{6}_gt_label(Ids|TrainIds)\.png'),
    bdd100k=(r'images/10k/(train|val)/[\da-f]{8}-[\da-f]{8}\.jpg',
             r'labels/sem_seg/masks/(train|val)/[\da-f]{8}-[\da-f]{8}\.png'),
    idd=(r'IDD_Segmentation/leftImg8bit/(train|val)/\d+/\w+_leftImg8bit\.png',
         r'idd20kII/leftImg8bit/(train|val)/\d+/\w+_leftImg8bit\.jpg',
         r'(IDD_Segmentation|idd20kII)/gtFine/(train|val)/\d+/\w+_gtFine_'
         r'(polygons\.json|labelcsTrainIds\.png|labellevel3Ids\.png)'),
    heatnet=(
        r'train/seq_00_day/\d\d/(fl_rgb|fl_ir_aligned|fl_rgb_labels)/'
        r'\1_\d+_\d+\.png',
        r'train/seq_01_night/\d\d/(fl_rgb|fl_ir_aligned)/\1_\d+_\d+\.png',
        r'test/(day|night)/ImagesRGB/fl_rgb_\d+_\d+_rgb\.png',
        r'test/(day|night)/ImagesIR/fl_ir_aligned_\d+_\d+_ir\.png',
        r'test/(day|night)/SegmentationClass/fl_rgb_\d+_\d+_rgb\.(npy|png)',
        r'test/class_names\.txt'))
# Values that the masks may hold, and masks by name.
# yapf: disable
MASKS = (
    ('cityscapes/gtFine/*/*/*_labelTrainIds.png', {*range(19), 255}),
    ('acdc/gt/*/*/*/*_labelTrainIds.png', {*range(19), 255}),
    ('bdd100k/labels/sem_seg/masks/*/*.png', {*range(19), 255}),
    ('idd/*/gtFine/*/*/*_labelcsTrainIds.png', {*range(19), 255}),
    ('idd/*/gtFine/*/*/*_labellevel3Ids.png', {*range(26), 255}),
    ('heatnet/train/*/*/fl_rgb_labels/*.png', {*range(14)}),
    ('heatnet/test/*/SegmentationClass/*.png', {*range(14)}))
# yapf: enable


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize('name', LAYOUTS)
def test_every_file_is_named_as_in_the_real_data(demo_root, name):
    files = [
        path.relative_to(demo_root / name).as_posix()
        for path in (demo_root / name).rglob('*') if path.is_file()
    ]
    for pattern in LAYOUTS[name]:
        assert any(re.fullmatch(pattern, file) for file in files), pattern
    strange = [
        file for file in files
        if not any(re.fullmatch(pattern, file) for pattern in LAYOUTS[name])
    ]
    assert not strange


@pytest.mark.parametrize('pattern, allowed', MASKS)
def test_masks_hold_only_label_codes(demo_root, pattern, allowed):
    paths = list(demo_root.glob(pattern))
    assert paths
    for path in paths:
        mask = read(path)
        assert mask.dtype == np.uint8 and mask.ndim == 2
        assert set(np.unique(mask).tolist()) <= allowed


@pytest.mark.parametrize('folder', ['cityscapes/gtFine', 'acdc/gt'])
def test_label_ids_map_to_train_ids(demo_root, folder):
    table = np.full(256, 255, np.uint8)
    for raw, train in CITYSCAPES_RAW_TO_TRAIN_ID.items():
        table[raw] = train
    paths = list((demo_root / folder).rglob('*_labelIds.png'))
    assert paths
    for path in paths:
        train = path.with_name(path.name.replace('labelIds', 'labelTrainIds'))
        np.testing.assert_array_equal(table[read(path)], read(train))


def test_idd_polygons_draw_both_masks(demo_root):
    paths = list(demo_root.glob('idd/*/gtFine/*/*/*_polygons.json'))
    assert {path.parts[-5]
            for path in paths} == {'IDD_Segmentation', 'idd20kII'}
    for path in paths:
        annotation = read_polygons(str(path))
        for name, table in (('labelcsTrainIds', IDD_NAME_TO_CS_TRAIN_ID),
                            ('labellevel3Ids', IDD_NAME_TO_LEVEL3_ID)):
            stem = path.name.replace('polygons.json', f'{name}.png')
            np.testing.assert_array_equal(
                draw_polygons(annotation, table), read(path.with_name(stem)))


def test_masks_are_as_large_as_their_images(demo_root):
    for image in demo_root.glob('idd/*/leftImg8bit/*/*/*'):
        stem = re.sub('_leftImg8bit.*', '', image.name)
        mask = next((image.parents[3] / 'gtFine' / image.parts[-3] /
                     image.parts[-2]).glob(f'{stem}_*csTrainIds.png'))
        assert read(image).shape[:2] == read(mask).shape == wide_size((48, 96))


def test_bdd_images_are_jpeg(demo_root):
    for path in demo_root.glob('bdd100k/images/10k/*/*.jpg'):
        assert Image.open(path).format == 'JPEG'


def test_infrared_test_name_loses_its_trailing_zero(demo_root):
    shortened = 0
    for path in demo_root.glob('heatnet/test/*/ImagesRGB/*.png'):
        stamp = path.name.removeprefix('fl_rgb_').removesuffix('_rgb.png')
        short = stamp[:-1] if stamp.endswith('0') else stamp
        shortened += short != stamp
        assert (path.parents[1] / 'ImagesIR' /
                f'fl_ir_aligned_{short}_ir.png').exists()
    assert shortened


def test_infrared_files_are_16_bit_of_the_colour_images_size(demo_root):
    for path in demo_root.glob('heatnet/test/*/ImagesIR/*.png'):
        assert read(path).dtype == np.uint16
        assert read(path).shape == (48, 142)  # 48 * 1920 / 650


def test_human_labels_are_arrays_with_their_png(demo_root):
    paths = list(demo_root.glob('heatnet/test/*/SegmentationClass/*.npy'))
    assert len(paths) == 4
    for path in paths:
        labels = np.load(path)
        assert 0 <= labels.min() and labels.max() <= HEATNET_IGNORE
        np.testing.assert_array_equal(labels, read(path.with_suffix('.png')))


def test_night_training_frames_have_no_labels(demo_root):
    night = demo_root / 'heatnet/train/seq_01_night/00'
    assert {path.name
            for path in night.iterdir()} == {'fl_rgb', 'fl_ir_aligned'}


def test_one_infrared_frame_lacks_its_partner(demo_root):
    day = demo_root / 'heatnet/train/seq_00_day'
    assert len(list(day.glob('*/fl_ir_aligned/*'))) == 1 + len(
        list(day.glob('*/fl_rgb/*')))


def test_frame_does_not_depend_on_how_many_are_made(tmp_path):
    write_cityscapes(tmp_path / 'one', 1, 0, (48, 96), seed=5)
    write_cityscapes(tmp_path / 'two', 2, 0, (48, 96), seed=5)
    for path in (tmp_path / 'one').rglob('*.png'):
        other = tmp_path / 'two' / path.relative_to(tmp_path / 'one')
        assert path.read_bytes() == other.read_bytes()


def test_unknown_condition_is_refused(tmp_path):
    with pytest.raises(ValueError, match="got 'sun'"):
        write_acdc(tmp_path, ['sun'], 1, 1, (48, 96), seed=0)
