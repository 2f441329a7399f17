# SPDX-License-Identifier: Apache-2.0
"""Tasks that a user got wrong, and what the user is told."""
from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest
from tiny import tiny_task


def test_stream_without_tasks_is_refused(open_tasks):
    with pytest.raises(ValueError, match='train_cfg.tasks is empty'):
        open_tasks()


def test_unknown_key_is_refused(open_tasks, day):
    with pytest.raises(
            ValueError, match=r"'day' has unknown keys \['iters'\] .* has \["):
        open_tasks(dict(day, iters=3))


def test_missing_key_is_refused(open_tasks, day):
    del day['val_dataset']
    with pytest.raises(ValueError, match=r"lacks \['val_dataset'\]"):
        open_tasks(day)


def test_two_tasks_of_one_name_are_refused(open_tasks, day):
    with pytest.raises(ValueError, match="two tasks .* are called 'day'"):
        open_tasks(day, dict(tiny_task('night'), name='day'))


def test_name_that_leaves_the_library_is_refused(open_tasks, day):
    with pytest.raises(ValueError, match='task name must start with'):
        open_tasks(dict(day, name='../day'))


@pytest.mark.parametrize('max_iters', [0, -1])
def test_task_without_iterations_is_refused(open_tasks, day, max_iters):
    with pytest.raises(
            ValueError,
            match=f"max_iters of task 'day' must be a whole number >= 1, "
            f'got {max_iters}'):
        open_tasks(day, max_iters=max_iters)


def test_missing_folder_is_named_with_a_way_out(open_tasks, root, day):
    shutil.rmtree(root / 'day' / 'img' / 'val')
    with pytest.raises(ValueError) as caught:
        open_tasks(day)
    message = str(caught.value)
    assert "val_dataset of task 'day' cannot be opened" in message
    assert str(root / 'day' / 'img' / 'val') in message
    assert 'data/README.md' in message and 'make_demo_data.py' in message


def test_missing_folder_inside_a_wrapper_names_its_root(open_tasks, root, day):
    day['train_dataset'] = dict(
        type='ConcatDataset', datasets=[day['train_dataset']])
    shutil.rmtree(root / 'day')
    with pytest.raises(ValueError, match=f'Check data_root .*{root}/day'):
        open_tasks(day)


def test_missing_list_of_images_is_refused(open_tasks, day):
    day['train_dataset']['ann_file'] = 'train.txt'
    with pytest.raises(ValueError, match="train_dataset of task 'day' cannot"):
        open_tasks(day)


def test_missing_folder_of_a_driving_dataset_shows_its_layout(
        open_tasks, root, day):
    dataset = dict(type='IDDLiteDataset', data_root='idd_lite', split='val')
    with pytest.raises(ValueError) as caught:
        open_tasks(dict(day, val_dataset=dataset))
    message = str(caught.value)
    for word in ("val_dataset of task 'day'", f'{root}/idd_lite', 'Expected'):
        assert word in message


@pytest.mark.parametrize('split', ['train', 'val'])
def test_empty_split_is_refused(open_tasks, root, day, split):
    for path in (root / 'day' / 'img' / split).iterdir():
        path.unlink()
    with pytest.raises(
            ValueError,
            match=f"{split}_dataset of task 'day' is empty: no "
            f"image below .*{root}/day"):
        open_tasks(day)


def test_suffix_that_matches_nothing_is_refused(open_tasks, day):
    day['train_dataset']['img_suffix'] = '.jpg'
    with pytest.raises(ValueError, match="of task 'day' is empty"):
        open_tasks(day)


@pytest.mark.parametrize('split', ['train', 'val'])
def test_label_outside_the_classes_is_refused(open_tasks, root, day, split):
    path = root / 'day' / 'ann' / split / '1.png'
    assert cv2.imwrite(str(path), np.full((48, 64), 3, np.uint8))
    with pytest.raises(
            ValueError,
            match=rf"{split} of task 'day': label '{path}' holds "
            r'\[3\], but the task has 3 classes'):
        open_tasks(day)


def test_image_that_cannot_be_decoded_is_named(open_tasks, root, day):
    path = root / 'day' / 'img' / 'train' / '2.png'
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=f"train of task 'day': .*{path}"):
        open_tasks(day)


def test_missing_label_is_named(open_tasks, root, day):
    path = root / 'day' / 'ann' / 'val' / '0.png'
    path.unlink()
    with pytest.raises(ValueError, match=f"val of task 'day': .*{path}"):
        open_tasks(day)


def test_number_of_checked_images_can_be_limited(open_tasks, root, day):
    path = root / 'day' / 'img' / 'train' / '2.png'
    path.write_bytes(b'')
    open_tasks(day, num_checked=2)  # the first and the last one


def test_other_classes_for_evaluation_are_refused(open_tasks, day):
    day['val_dataset']['metainfo']['classes'] = ('road', 'sky', 'car')
    with pytest.raises(
            ValueError,
            match=r"'day' trains on the classes \('sky', 'road', "
            r"'car'\) but is evaluated on \('road', "):
        open_tasks(day)


def test_dataset_without_classes_is_refused(open_tasks, day):
    del day['train_dataset']['metainfo']
    with pytest.raises(ValueError, match="'day' declares no classes: give it"):
        open_tasks(day)


def test_evaluation_on_resized_labels_is_refused(open_tasks, day):
    load, labels, pack = day['val_dataset']['pipeline']
    resize = dict(type='Resize', scale=(32, 24))
    day['val_dataset']['pipeline'] = [load, labels, resize, pack]
    with pytest.raises(
            ValueError,
            match=r'of size \(48, 64\) labels \(24, 32\): put Load'):
        open_tasks(day)
    day['val_dataset']['pipeline'] = [load, resize, labels, pack]
    open_tasks(day)


def test_evaluation_without_labels_is_refused(open_tasks, day):
    load, _, pack = day['val_dataset']['pipeline']
    day['val_dataset']['pipeline'] = [load, pack]
    with pytest.raises(ValueError, match="val of task 'day': .* no labels"):
        open_tasks(day)
