# SPDX-License-Identifier: Apache-2.0
"""Samples of several sensors, from folders to a packed stack."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mmengine.registry import init_default_scope

from mmseg.registry import DATASETS, TRANSFORMS
from mmseg_mile.datasets import DropSensors, LoadSensors, check_dataset

LOADERS: dict[str, Any] = dict(
    rgb=dict(type='LoadImageFromFile'),
    depth=dict(
        type='LoadSingleChannelImage', low=0, high=51000, num_channels=1))
FOLDERS: dict[str, Any] = dict(
    type='SensorFolders',
    sensors=dict(rgb='rgb/{}.png', depth='depth/{}_depth.png'),
    labels='labels/{}.png',
    metainfo=dict(classes=('ground', 'plant')))


@pytest.fixture(autouse=True)
def mmseg_scope() -> None:
    """Let pipelines name their transforms as configs do."""
    init_default_scope('mmseg')


def write(path: Path, array: np.ndarray) -> None:
    """Write an image and the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)


@pytest.fixture
def robot(tmp_path: Path) -> Path:
    """Frames a/0 and a/1 in colour, and in 16-bit depth of half the size."""
    for index in range(2):
        rgb = np.full((6, 8, 3), (10, 20, 30 + index), np.uint8)
        write(tmp_path / f'rgb/a/{index}.png', rgb)
        depth = np.full((3, 4), 10200 + 200 * index, np.uint16)
        write(tmp_path / f'depth/a/{index}_depth.png', depth)
        write(tmp_path / f'labels/a/{index}.png', np.eye(6, 8, dtype=np.uint8))
    return tmp_path


def sample_of(root: Path, *transforms: dict, **changes: Any) -> dict:
    """The first frame after loading and further transforms."""
    dataset = DATASETS.build(dict(FOLDERS, data_root=str(root), **changes))
    results = dataset.get_data_info(0)
    for config in (dict(type='LoadSensors', sensors=LOADERS), *transforms):
        results = TRANSFORMS.build(config)(results)
    return results


def test_sensors_are_stacked_in_the_frame_of_the_first(robot):
    sample = sample_of(robot)
    assert sample['img'].shape == (6, 8, 4)
    assert sample['img'].dtype == np.float32
    # 255 * 10200 / 51000 = 51
    assert np.unique(
        sample['img'].reshape(-1, 4), axis=0).tolist() == [[10, 20, 30, 51]]
    assert sample['sensor_present'] == dict(rgb=True, depth=True)
    assert sample['ori_shape'] == (6, 8)


def test_eight_bits_stay_eight_bits(robot):
    loaded = LoadSensors(dict(rgb=LOADERS['rgb'])).transform(
        dict(sensor_paths=dict(rgb=str(robot / 'rgb/a/0.png'))))
    assert loaded['img'].dtype == np.uint8


def test_own_interpolation_makes_no_new_values(robot):
    path = robot / 'depth/a/0_depth.png'
    write(path, np.array([[0, 51000], [51000, 0]], np.uint16))
    nearest = dict(LOADERS['depth'], interpolation='nearest')
    load = LoadSensors(dict(rgb=LOADERS['rgb'], depth=nearest))
    paths = dict(rgb=str(robot / 'rgb/a/0.png'), depth=str(path))
    stack = load.transform(dict(sensor_paths=paths))['img']
    assert set(np.unique(stack[:, :, 3])) == {0, 255}


def test_missing_file_is_an_absent_sensor(robot):
    (robot / 'depth/a/0_depth.png').unlink()
    sample = sample_of(robot, allow_missing=True)
    assert sample['sensor_present'] == dict(rgb=True, depth=False)
    assert not sample['img'][:, :, 3].any()


def test_missing_reference_leaves_the_frame_to_the_next_sensor(robot):
    (robot / 'rgb/a/0.png').unlink()
    sample = sample_of(robot, allow_missing=True)
    assert sample['img'].shape == (3, 4, 4)
    assert sample['img_path'].endswith('0_depth.png')


@pytest.mark.parametrize('lost, changes, message', [
    ('depth/a/0_depth.png', {}, r"'a/0' lacks the sensors \['depth'\].*a/0_"),
    ('labels/a/1.png', dict(ann_file='all.txt'), "'a/1' has no label"),
    (None, dict(ann_file='none.txt'), 'no list'),
    (None, dict(labels='masks/{}.png'), 'masks.*is missing'),
    (None, dict(labels='labels'), 'one {} where the name'),
    (None, dict(sensors={'rgb+x': 'rgb/{}.png'}), 'letters'),
    (None, dict(labels='labels/{}.tif'), 'no frame'),
])  # yapf: disable
def test_incomplete_folders_are_refused(robot, lost, changes, message):
    (robot / 'all.txt').write_text('a/0\na/1\n')
    if lost:
        (robot / lost).unlink()
    with pytest.raises(ValueError, match=message):
        DATASETS.build(dict(FOLDERS, data_root=str(robot), **changes))


def test_frame_without_any_sensor_is_refused_even_where_some_may_lack(robot):
    (robot / 'rgb/a/0.png').unlink()
    (robot / 'depth/a/0_depth.png').unlink()
    with pytest.raises(ValueError, match='needs one sensor'):
        DATASETS.build(dict(FOLDERS, data_root=str(robot), allow_missing=True))


def test_list_names_frames_in_its_order(robot):
    (robot / 'some.txt').write_text('a/1\n\na/0\n')
    dataset = DATASETS.build(
        dict(FOLDERS, data_root=str(robot), ann_file='some.txt'))
    assert [Path(info['img_path']).stem for info in dataset] == ['1', '0']
    assert dataset.metainfo['sensors'] == ('rgb', 'depth')


def test_broken_file_of_a_sensor_is_named(robot):
    (robot / 'depth/a/0_depth.png').write_bytes(b'no image')
    load = dict(type='LoadSensors', sensors=LOADERS)
    dataset = DATASETS.build(
        dict(FOLDERS, data_root=str(robot), pipeline=[load]))
    check_dataset(dataset, 2)
    with pytest.raises(ValueError, match="sensor 'depth', file .*0_depth.png"):
        dataset[0]


def test_geometry_turns_all_sensors_alike_and_flags_are_packed(robot):
    rgb = np.zeros((6, 8, 3), np.uint8)
    rgb[:, :2] = 200
    write(robot / 'rgb/a/0.png', rgb)
    depth = np.zeros((6, 8), np.uint16)
    depth[:, :2] = 51000
    write(robot / 'depth/a/0_depth.png', depth)
    packed = sample_of(robot, dict(type='LoadAnnotations'),
                       dict(type='Resize', scale=(16, 12)),
                       dict(type='RandomCrop', crop_size=(8, 16)),
                       dict(type='RandomFlip', prob=1.0),
                       dict(type='PackSensorInputs'))
    stack, sample = packed['inputs'], packed['data_samples']
    assert stack.shape == (4, 8, 16)
    assert sample.gt_sem_seg.shape == (8, 16)
    assert (stack[0, :, 13:] == 200).all() and (stack[3, :, 13:] == 255).all()
    assert not stack[:, :, :8].any()
    assert sample.sensor_present == dict(rgb=True, depth=True)


def test_photometrics_change_their_own_sensor_alone(robot):
    colours = dict(type='PhotoMetricDistortion', brightness_delta=60)
    before = sample_of(robot)['img']
    after = sample_of(
        robot, dict(type='OnSensors', sensors=['rgb'],
                    transforms=[colours]))['img']
    assert (after[:, :, :3] != before[:, :, :3]).any()
    assert (after[:, :, 3] == before[:, :, 3]).all()


def test_absent_sensor_is_not_changed(robot):
    (robot / 'rgb/a/0.png').unlink()
    colours = dict(type='PhotoMetricDistortion', brightness_delta=200)
    change = dict(type='OnSensors', sensors=['rgb'], transforms=[colours])
    assert not sample_of(
        robot, change, allow_missing=True)['img'][:, :, :3].any()


@pytest.mark.parametrize('sensors, transform, message', [
    (['lidar'], dict(type='PhotoMetricDistortion'), 'not.*lidar'),
    (['rgb'], dict(type='Resize', scale=(4, 4)), 'beside it'),
])  # yapf: disable
def test_wrong_photometrics_are_refused(robot, sensors, transform, message):
    change = dict(type='OnSensors', sensors=sensors, transforms=[transform])
    with pytest.raises(ValueError, match=message):
        sample_of(robot, change)


def test_unknown_sensor_of_a_dataset_is_refused(robot):
    load = LoadSensors(dict(lidar=LOADERS['depth']))
    with pytest.raises(ValueError, match="not.*'lidar'"):
        load.transform(dict(sensor_paths=dict(rgb='x')))


def test_wrong_number_of_channels_names_the_file(robot):
    load = LoadSensors(
        dict(rgb=dict(type='LoadImageFromFile', color_type='grayscale')))
    with pytest.raises(ValueError, match='a/0.png.*1 channels'):
        load.transform(dict(sensor_paths=dict(rgb=str(robot / 'rgb/a/0.png'))))


def test_dropped_sensors_are_zero_and_one_stays(robot):
    drop = DropSensors(prob=1.0)
    kept = set()
    for _ in range(20):
        sample = drop.transform(sample_of(robot))
        present = tuple(sample['sensor_present'].values())
        kept.add(present)
        assert sample['img'][:, :, :3].any() == present[0]
        assert sample['img'][:, :, 3].any() == present[1]
    assert kept == {(True, False), (False, True)}


def test_no_sensor_is_dropped_below_what_is_kept(robot):
    sample = DropSensors(prob=1.0, keep=2).transform(sample_of(robot))
    assert all(sample['sensor_present'].values())


@pytest.mark.parametrize('prob, keep', [(1.5, 1), (0.5, 0)])
def test_impossible_drops_are_refused(prob, keep):
    with pytest.raises(ValueError, match='keep >= 1'):
        DropSensors(prob, keep)
