# SPDX-License-Identifier: Apache-2.0
"""Fabricated data: true layouts, labels that fit, weather that shows."""
from __future__ import annotations

import json
import re

import cv2
import numpy as np
import pytest
from PIL import Image

from mmseg.registry import DATASETS
from mmseg_mile.datasets.demo import (DATA_SETS, MANIFEST, demo_data,
                                      make_demo_data)
from mmseg_mile.datasets.demo.canvas import Look, Scene
from mmseg_mile.datasets.demo.demo_data import (HEATNET_NAME_TO_ID,
                                                TO_CITYSCAPES, TO_IDD,
                                                UNFINISHED, annotation,
                                                cityscapes_masks, heatnet_mask,
                                                idd_masks, wide_size)
from mmseg_mile.datasets.demo.rendering import (Pixels, render, render_thermal,
                                                valid_columns)
from mmseg_mile.datasets.demo.scene import (FREIBURG, GERMAN, INDIAN, SWISS,
                                            sample_scene)
from mmseg_mile.datasets.idd import draw_polygons, read_polygons
from mmseg_mile.datasets.label_tables import (CITYSCAPES_CLASSES,
                                              CITYSCAPES_RAW_TO_TRAIN_ID,
                                              HEATNET_CLASSES, HEATNET_IGNORE,
                                              IDD_LEVEL3_CLASSES,
                                              IDD_NAME_TO_CS_TRAIN_ID,
                                              IDD_NAME_TO_LEVEL3_ID)

SKY, PERSON = map(HEATNET_CLASSES.index, ('sky', 'person'))


def make(root, **changes):
    settings = dict(
        seed=3, num_train=2, num_val=2, size=(48, 96), num_processes=1)
    return make_demo_data(root, **{**settings, **changes})


@pytest.fixture(scope='module')
def demo_root(tmp_path_factory):
    """Folder with tiny demo data; not to be changed."""
    root = tmp_path_factory.mktemp('demo')
    make(root)
    return root


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


# yapf: disable
CASES = (
    ('CityscapesDomainDataset', 'cityscapes', dict(split='train'), 2),
    ('CityscapesDomainDataset', 'cityscapes', dict(split='val'), 2),
    ('ACDCDataset', 'acdc', dict(split='train', condition='snow'), 2),
    ('ACDCDataset', 'acdc', dict(split='val', condition='all'), 8),
    ('BDD100KDomainDataset', 'bdd100k', dict(split='train'), 2),
    ('IDDDataset', 'idd', dict(split='train'), 2),
    ('IDDDataset', 'idd', dict(split='val', label_space='level3'), 2),
    ('HeatNetDataset', 'heatnet', dict(split='train'), 2),
    ('HeatNetDataset', 'heatnet', dict(split='train', modality='thermal'), 2),
    ('HeatNetDataset', 'heatnet',
     dict(split='test', modality='thermal', time='all'), 4))
# yapf: enable


@pytest.mark.parametrize('name, folder, options, frames', CASES)
def test_class_finds_all_frames(demo_root, name, folder, options, frames):
    dataset = DATASETS.build(
        dict(
            type=name,
            data_root=str(demo_root / folder),
            pipeline=[],
            **options))
    assert len(dataset) == frames


def contents(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob('*') if path.is_file()
    }


def times(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob('*.*')}


@pytest.fixture
def small_root(tmp_path):
    make(tmp_path, num_train=1, num_val=1)
    return tmp_path


def test_equal_seed_gives_equal_bytes_in_any_number_of_processes(
        demo_root, tmp_path):
    make(tmp_path, num_processes=2)
    assert contents(tmp_path) == contents(demo_root)


def test_another_seed_gives_other_images(demo_root, tmp_path):
    make(tmp_path, seed=4)
    for path in demo_root.glob('cityscapes/leftImg8bit/*/*/*.png'):
        other = tmp_path / path.relative_to(demo_root)
        assert path.read_bytes() != other.read_bytes()


def test_all_data_sets_are_made(demo_root):
    assert {path.name
            for path in demo_root.iterdir()} == {*DATA_SETS, MANIFEST}


def test_second_call_touches_nothing(demo_root):
    before = times(demo_root)
    make(demo_root)
    assert times(demo_root) == before


def test_interrupted_run_is_repaired(small_root, monkeypatch):
    whole = contents(small_root)

    def stop(jobs, num_processes):
        jobs[0]()
        (small_root / 'cityscapes/stale.png').write_bytes(b'')
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo_data, '_run', stop)
        with pytest.raises(KeyboardInterrupt):
            make(small_root, num_train=1, num_val=1, seed=9, overwrite=True)
    assert not (small_root / MANIFEST).exists()
    assert (small_root / UNFINISHED).exists()
    make(small_root, num_train=1, num_val=1)
    assert contents(small_root) == whole


def test_missing_data_set_is_made_again(small_root, tmp_path_factory):
    whole = contents(small_root)
    (small_root / 'acdc').rename(small_root / 'elsewhere')
    make(small_root, num_train=1, num_val=1)
    (small_root / 'elsewhere').rename(tmp_path_factory.mktemp('old') / 'acdc')
    assert contents(small_root) == whole


def test_other_parameters_are_refused(small_root):
    with pytest.raises(ValueError, match='--overwrite'):
        make(small_root, num_train=1, num_val=1, seed=8)


def test_overwrite_replaces_demo_data(small_root):
    make(small_root, num_train=1, num_val=1, seed=8, overwrite=True)
    assert json.loads((small_root / MANIFEST).read_text())['seed'] == 8


@pytest.mark.parametrize('overwrite', [False, True])
def test_data_of_another_origin_are_never_touched(tmp_path, overwrite):
    real = tmp_path / 'cityscapes/leftImg8bit/real.png'
    real.parent.mkdir(parents=True)
    real.write_bytes(b'real')
    with pytest.raises(ValueError, match='not demo data'):
        make(tmp_path, overwrite=overwrite)
    assert real.read_bytes() == b'real'


@pytest.mark.parametrize(
    'changes, message',
    [(dict(num_train=0), 'num_train must be at least 1, got 0'),
     (dict(num_val=-1), 'num_val must be at least 1, got -1'),
     (dict(seed=-1), 'seed must be at least 0, got -1'),
     (dict(size=(8, 16)), 'size must be')])
def test_bad_argument_is_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def scenes(count, size, street):
    for index in range(count):
        yield sample_scene(np.random.default_rng([0, index]), size, street)


def test_every_class_but_train_occurs():
    counts = np.zeros(256, int)
    for scene in scenes(48, (128, 256), GERMAN):
        mask = cityscapes_masks(annotation(scene,
                                           TO_CITYSCAPES))['labelTrainIds']
        counts += np.bincount(mask.ravel(), minlength=256)
    missing = {
        name
        for name, count in zip(CITYSCAPES_CLASSES, counts) if count < 50
    }
    assert missing == {'train'}


def test_indian_roads_have_what_only_level_3_knows():
    found = set()
    for scene in scenes(30, (128, 228), INDIAN):
        mask = idd_masks(annotation(scene, TO_IDD))['labellevel3Ids']
        found |= {IDD_LEVEL3_CLASSES[i] for i in np.unique(mask) if i < 255}
    assert {
        'autorickshaw', 'billboard', 'curb', 'drivable fallback', 'guard rail',
        'obs-str-bar-fallback', 'vehicle fallback'
    } <= found


@pytest.mark.parametrize('name, group', [('rider', 'person'), ('bus', 'car'),
                                         ('motorcycle', 'bicycle'),
                                         ('traffic light', 'pole'),
                                         ('wall', 'building')])
def test_heatnet_merges_classes(name, group):
    assert HEATNET_NAME_TO_ID[name] == HEATNET_NAME_TO_ID[group]


def test_number_plate_is_void_in_idd_and_car_elsewhere():
    scene = Scene(40, 40, 40., 20., 15., 1.5)
    everything = [[-9, -9], [49, -9], [49, 49], [-9, 49]]
    for label in ('car', 'license plate'):
        scene.screen(label, everything, 'hood', Look('metal', (.5, .5, .5)))
    polygons = annotation(scene, {})
    car = CITYSCAPES_CLASSES.index('car')
    assert (cityscapes_masks(polygons)['labelTrainIds'] == car).all()
    assert (heatnet_mask(scene) == HEATNET_NAME_TO_ID['car']).all()
    for mask in idd_masks(polygons).values():
        assert (mask == 255).all()


def test_street_point_projects_by_similar_triangles():
    scene = Scene(100, 200, 100., 90., 40., 1.5)
    # 2 m right and 1.5 m below the camera at 10 m: 20 and 15 pixels
    np.testing.assert_allclose(
        scene.project([(2, 0, 10), (0, 1.5, 300)]), [[110, 55], [90, 40]])


def test_pixels_of_the_street_lie_at_height_zero_and_come_nearer():
    pixels = Pixels.of(next(scenes(1, (64, 128), GERMAN)))
    ground = pixels.on('ground')
    near = ground & (pixels.z < 50)
    np.testing.assert_allclose(pixels.y[near], 0., atol=1e-3)
    column = ground.sum(0).argmax()
    assert (np.diff(pixels.z[ground[:, column], column]) <= 0).all()


@pytest.fixture(scope='module')
def swiss():
    return [Pixels.of(scene) for scene in scenes(3, (64, 128), SWISS)]


def brightness(swiss, condition):
    rng = np.random.default_rng(0)
    return np.mean([render(pixels, condition, rng).mean() for pixels in swiss])


def test_night_is_darker_and_snow_brighter_than_day(swiss):
    day = brightness(swiss, 'cityscapes')
    assert brightness(swiss, 'night') < .55 * day
    assert brightness(swiss, 'snow') > day + 20


def test_fog_takes_contrast(swiss):
    rng = np.random.default_rng(0)
    clear, foggy = (
        np.mean([render(pixels, condition, rng).std() for pixels in swiss])
        for condition in ('cityscapes', 'fog'))
    assert foggy < .85 * clear


def test_valid_columns_are_those_of_the_real_frames():
    assert valid_columns(1920) == (300, 1710)
    assert valid_columns(378) == (59, 337)


@pytest.fixture(scope='module', params=['day', 'night'])
def frames(request):
    night, frames = request.param == 'night', []
    for i in range(4):
        rng = np.random.default_rng([4, i])
        scene = sample_scene(rng, (64, 189), FREIBURG)
        counts = render_thermal(Pixels.of(scene), night, rng)
        labels = heatnet_mask(scene).copy()
        labels[counts == 0] = 255
        frames.append((counts, labels))
    return frames


def of_class(frames, label):
    return np.concatenate(
        [counts[labels == label] for counts, labels in frames]).astype(float)


def test_counts_are_16_bit_and_in_the_sensors_range(frames):
    for counts, _ in frames:
        assert counts.dtype == np.uint16
        first, last = valid_columns(counts.shape[1])
        valid = counts[:, first:last]
        assert valid.min() >= 20800 and valid.max() <= 27000
        assert np.mean((valid >= 21800) & (valid <= 25000)) > .9


def test_columns_outside_are_empty(frames):
    for counts, _ in frames:
        first, last = valid_columns(counts.shape[1])
        assert not counts[:, :first].any()
        assert not counts[:, last:].any()


def test_people_are_warmer_than_the_sky(frames):
    assert of_class(frames, PERSON).size > 50
    assert np.median(of_class(frames, PERSON)) > (
        np.median(of_class(frames, SKY)) + 500)


def test_infrared_is_aligned_with_the_labels(frames):
    # The skyline is the strongest edge: a shift would mix sky and the rest.
    for counts, labels in frames:
        sky = cv2.erode((labels == SKY).astype(np.uint8), np.ones((3, 3)))
        rest = cv2.erode((labels < SKY).astype(np.uint8), np.ones((3, 3)))
        if sky.sum() < 30:
            continue
        warmest_sky = np.percentile(counts[sky > 0], 95)
        assert np.mean(counts[rest > 0] > warmest_sky) > .9
