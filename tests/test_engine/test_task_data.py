# SPDX-License-Identifier: Apache-2.0
"""From the tasks of a config to checked datasets and loaders."""
from __future__ import annotations

import copy
import logging
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from tiny_stream import tiny_task

import mmseg_mile.datasets  # noqa: F401  registers the components
from mmseg_mile.engine.task_data import TaskData

TEMPLATE = dict(batch_size=2, num_workers=0)


@pytest.fixture(autouse=True)
def mmseg_scope(quick):
    init_default_scope('mmseg')
    with quick():
        yield


@pytest.fixture
def root(tiny_data, tmp_path):
    """A copy of the images that a test may spoil."""
    return shutil.copytree(tiny_data, tmp_path / 'data')


@pytest.fixture
def open_tasks(root):
    """``open_tasks(*tasks)`` opens tasks as the loop does."""

    def run(*tasks, max_iters=5, num_checked=16):
        return TaskData(tasks, str(root), max_iters, num_checked)

    return run


@pytest.fixture
def runner():
    return SimpleNamespace(
        build_dataloader=Runner.build_dataloader,
        seed=0,
        logger=logging.getLogger('test_task_data'))


@pytest.fixture
def day():
    return tiny_task('day')


def nested(task, **wrapper):
    """The task with its training set in a wrapper, under ``inner``."""
    inner = task['train_dataset']
    meant = {'inner': inner, 'inner twice': [inner, copy.deepcopy(inner)]}
    for key, value in wrapper.items():
        if isinstance(value, str):
            wrapper[key] = meant.get(value, value)
    return dict(task, train_dataset=wrapper)


# -- tasks that are opened ----------------------------------------------------


def test_tasks_keep_their_order_classes_and_palette(open_tasks, day):
    tasks = open_tasks(tiny_task('infrared'), day).tasks
    assert [task.name for task in tasks] == ['infrared', 'day']
    assert tasks[0].classes == ('cold', 'car')
    assert tasks[0].palette == ((0, 60, 100), (200, 30, 30))
    assert tasks[1].classes == ('sky', 'road', 'car')


def test_task_may_have_its_own_length_and_start(open_tasks, day):
    day.update(max_iters=7, init_from='base')
    task, other = open_tasks(day, tiny_task('night')).tasks
    assert (task.max_iters, task.init_from) == (7, 'base')
    assert (other.max_iters, other.init_from) == (5, None)


def test_config_of_the_caller_stays_as_it_is(open_tasks, day):
    before = copy.deepcopy(day)
    open_tasks(day)
    assert day == before


def test_data_root_is_joined(open_tasks, day, root):
    task = open_tasks(day).tasks[0]
    assert task.train_dataset['data_root'] == str(root / 'day')


def test_absolute_data_root_is_kept(open_tasks, tiny_data, day):
    for split in ('train', 'val'):
        day[f'{split}_dataset']['data_root'] = str(tiny_data / 'day')
    task = open_tasks(day).tasks[0]
    assert task.train_dataset['data_root'] == str(tiny_data / 'day')


@pytest.mark.parametrize('value', ['', None])
def test_dataset_without_a_folder_of_its_own_gets_the_root(
        open_tasks, day, root, value):
    for split in ('train', 'val'):
        day[f'{split}_dataset'].update(
            data_root=value,
            data_prefix=dict(
                img_path=f'day/img/{split}', seg_map_path=f'day/ann/{split}'))
    assert open_tasks(day).tasks[0].train_dataset['data_root'] == f'{root}/'


@pytest.mark.parametrize('wrapper, length', [
    (dict(type='ConcatDataset', datasets='inner twice'), 12),
    (dict(type='RepeatDataset', dataset='inner', times=3), 18),
    (dict(
        type='ConcatDataset',
        datasets=[dict(tiny_task('day')['train_dataset'])]), 6),
])
def test_data_root_is_joined_inside_wrappers(open_tasks, runner, day, wrapper,
                                             length):
    data = open_tasks(nested(day, **wrapper))
    loader = data.train_loader(
        runner, data.tasks[0],
        dict(TEMPLATE, sampler=dict(type='DefaultSampler', shuffle=False)))
    assert len(loader.dataset) == length
    assert len(list(loader)) == length // 2


def test_data_root_is_joined_at_any_depth(open_tasks, runner, day):
    inner = dict(type='RepeatDataset', dataset=day['train_dataset'], times=2)
    task = nested(day, type='ConcatDataset', datasets=[inner])
    data = open_tasks(task)
    path = data.tasks[0].train_dataset['datasets'][0]['dataset']['data_root']
    assert path.endswith('/data/day')


# -- loaders ------------------------------------------------------------------


def test_train_loader_uses_the_training_pipeline(open_tasks, runner, day):
    data = open_tasks(day)
    loader = data.train_loader(
        runner, data.tasks[0],
        dict(TEMPLATE, sampler=dict(type='InfiniteSampler', shuffle=True)))
    batch = next(iter(loader))
    assert [x.shape for x in batch['inputs']] == [(3, 32, 48)] * 2


def test_val_loader_gives_each_image_once_and_in_order(open_tasks, runner,
                                                       day):
    data = open_tasks(day)
    loader = data.val_loader(runner, data.tasks[0], TEMPLATE)
    names = [
        sample.img_path.rsplit('/', 1)[1] for batch in loader
        for sample in batch['data_samples']
    ]
    assert names == ['0.png', '1.png', '2.png']


def prototype_images(data, runner, max_images):
    loader = data.prototype_loader(runner, data.tasks[0], TEMPLATE, max_images)
    return [(sample.img_path.split('/img/')[1], tuple(pixels.shape))
            for batch in loader
            for pixels, sample in zip(batch['inputs'], batch['data_samples'])]


def test_prototypes_see_training_images_uncropped(open_tasks, runner, day):
    found = prototype_images(open_tasks(day), runner, 1000)
    assert found == [(f'train/{i}.png', (3, 48, 64)) for i in range(6)]


def test_prototype_images_are_thinned_out_evenly(open_tasks, runner, day):
    names = [name for name, _ in prototype_images(open_tasks(day), runner, 3)]
    assert names == ['train/0.png', 'train/2.png', 'train/5.png']


@pytest.mark.parametrize('wrapper', [
    dict(type='ConcatDataset', datasets='inner twice'),
    dict(type='RepeatDataset', dataset='inner', times=2),
])
def test_prototype_images_of_wrapped_datasets_are_thinned_out(
        open_tasks, runner, day, wrapper):
    data = open_tasks(nested(day, **wrapper))
    found = prototype_images(data, runner, 4)
    assert [name for name, _ in found
            ] == ['train/0.png', 'train/3.png', 'train/1.png', 'train/5.png']
    assert {shape for _, shape in found} == {(3, 48, 64)}


def test_prototypes_see_no_mixed_images(open_tasks, runner, day):
    load, labels, *rest, pack = day['train_dataset']['pipeline']
    day['train_dataset']['pipeline'] = [load, labels]
    mixing = [
        dict(type='RandomMosaic', prob=1, img_scale=(48, 64)), *rest, pack
    ]
    data = open_tasks(
        nested(
            day, type='MultiImageMixDataset', dataset='inner',
            pipeline=mixing))
    assert prototype_images(data, runner,
                            1000) == [(f'train/{i}.png', (3, 48, 64))
                                      for i in range(6)]


# -- tasks that are refused ---------------------------------------------------


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
            match=f"max_iters of task 'day' must be >= 1, "
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
    task = nested(day, type='ConcatDataset', datasets='inner twice')
    shutil.rmtree(root / 'day')
    with pytest.raises(ValueError, match=f'Check data_root .*{root}/day'):
        open_tasks(task)


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
