# SPDX-License-Identifier: Apache-2.0
"""From the tasks of a config to checked datasets and loaders."""
from __future__ import annotations

import copy
import logging
from itertools import islice
from types import SimpleNamespace

import pytest
from mmengine.runner import Runner
from tiny import tiny_task

TEMPLATE = dict(batch_size=2, num_workers=0)


@pytest.fixture
def runner():
    return SimpleNamespace(
        build_dataloader=Runner.build_dataloader,
        seed=0,
        logger=logging.getLogger('test_task_data'))


def nested(task, **wrapper):
    """The task with its training set in a wrapper, under ``inner``."""
    inner = task['train_dataset']
    meant = {'inner': inner, 'inner twice': [inner, copy.deepcopy(inner)]}
    for key, value in wrapper.items():
        if isinstance(value, str):
            wrapper[key] = meant.get(value, value)
    return dict(task, train_dataset=wrapper)


def test_tasks_keep_their_order_classes_and_palette(open_tasks, day):
    tasks = open_tasks(tiny_task('infrared'), day).tasks
    assert [task.name for task in tasks] == ['infrared', 'day']
    assert tasks[0].classes == ('cold', 'car')
    assert tasks[0].palette == ((0, 60, 100), (200, 30, 30))
    assert tasks[1].classes == ('sky', 'road', 'car')


def test_task_may_have_its_own_length_and_start(open_tasks, day):
    day.update(max_iters=7, init_from='base', family='colour')
    task, other = open_tasks(day, tiny_task('night')).tasks
    assert (task.max_iters, task.init_from) == (7, 'base')
    assert (other.max_iters, other.init_from) == (5, None)
    assert (task.family, other.family) == ('colour', None)


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
    # an endless stream, which begins with each image once
    batches = islice(loader, length // 2)
    assert len(
        {s.img_path
         for batch in batches
         for s in batch['data_samples']}) == 6


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
