# SPDX-License-Identifier: Apache-2.0
"""From the tasks of a config to checked datasets and loaders.

The id of a case of odd input is the input; its last entry is None where the
input is usable, else what the ``ValueError`` must say.
"""
from __future__ import annotations

import copy
import shutil
from itertools import islice

import cv2
import numpy as np
import pytest
from tiny import tiny_task

from mmseg_mile.engine.task_data import TaskData, in_order

DRAWS = np.random.default_rng(7)
IMAGE, LABEL = 'img/train/1.png', 'ann/train/1.png'
TEMPLATE = dict(batch_size=2, num_workers=0)


def pixels(*shape, depth=np.uint8):
    """Random values over the whole range of a type."""
    return DRAWS.integers(0, np.iinfo(depth).max, shape).astype(depth)


def classes(*shape):
    """A label map of three classes."""
    return DRAWS.integers(0, 3, shape).astype(np.uint8)


def put(*pairs):
    """Write arrays, or bytes, over files of the task 'day'."""

    def spoil(root, task):
        for name, content in pairs:
            path = root / 'day' / name
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                assert cv2.imwrite(str(path), content)

    return spoil


def remove(pattern):
    """Remove files or folders of the task 'day'."""

    def spoil(root, task):
        for path in list((root / 'day').glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def grey_task(root, task):
    put((IMAGE, pixels(48, 64, depth=np.uint16)),
        *((f'img/train/{i}.png', pixels(48, 64))
          for i in (0, 2, 3, 4, 5)))(root, task)
    task['train_dataset']['pipeline'][0] = dict(
        type='LoadSingleChannelImage', low=0, high=65535)


def field(key, value, split='train'):
    """Change one field of a dataset."""
    return lambda root, task: task[f'{split}_dataset'].update({key: value})


def meta(**values):
    """Change the metainfo of both datasets."""

    def spoil(root, task):
        for split in ('train', 'val'):
            metainfo = task[f'{split}_dataset']['metainfo']
            metainfo.update(values)
            if metainfo['palette'] is None:
                del metainfo['palette']

    return spoil


def steps(split, *kept):
    """Keep some steps of a pipeline, or other ones."""

    def spoil(root, task):
        pipeline = task[f'{split}_dataset']['pipeline']
        task[f'{split}_dataset']['pipeline'] = [
            pipeline[step] if isinstance(step, int) else step for step in kept
        ]

    return spoil


def entry(key, value):
    """Change one field of the task."""
    return lambda root, task: task.update({key: value})


def listed_in_utf_16(root, task):
    (root / 'day/few.txt').write_text('1\n', encoding='utf-16')
    task['train_dataset']['ann_file'] = 'few.txt'


def wrapped_without_folder(root, task):
    task['train_dataset'] = dict(
        type='ConcatDataset', datasets=[task['train_dataset']])
    shutil.rmtree(root / 'day')


DEEP_LABEL = classes(48, 64).astype(np.uint16)
RESIZE = dict(type='Resize', scale=(32, 24))
PNG = cv2.imencode('.png', pixels(48, 64, 3))[1].tobytes()
JPEG = cv2.imencode('.jpg', pixels(48, 64, 3))[1].tobytes()
FILES = {
    'image of odd size': (put((IMAGE, pixels(47, 61, 3)),
                              (LABEL, classes(47, 61))), None),
    'grey image': (put((IMAGE, pixels(48, 64))), None),
    'RGBA image': (put((IMAGE, pixels(48, 64, 4))), None),
    '16-bit colour image': (put((IMAGE, pixels(48, 64, 3,
                                               depth=np.uint16))), None),
    '16-bit grey image': (grey_task, None),
    'JPEG called .png': (put((IMAGE, JPEG)), None),
    '16-bit label of small values': (put((LABEL, DEEP_LABEL)), None),
    'one image': (remove('*/train/[1-5].png'), None),
    'one class in all labels':
    (put(*((f'ann/{split}/{i}.png', np.zeros((48, 64), np.uint8))
           for split, n in (('train', 6), ('val', 3))
           for i in range(n))), None),
    'image of 1 pixel': (put((IMAGE, pixels(1, 1, 3)), (LABEL, classes(1, 1))),
                         rf'label .*{LABEL}.* shape \(\), not rows and col'),
    'empty image file': (put((IMAGE, b'')), rf"failed on image '.*{IMAGE}"),
    'empty label file': (put((LABEL, b'')), rf"failed .* label '.*{LABEL}"),
    'cut image': (put((IMAGE, PNG[:99])), rf"train of task 'day': .*{IMAGE}"),
    'missing label': (remove('ann/val/0.png'), r"val of task 'day'.*ann/val/"),
    'label smaller than its image': (put(
        (LABEL, classes(24, 32))), rf'{LABEL}.*\(24, 32\).*\(48, 64\): both'),
    'colour label': (put(
        (LABEL, pixels(48, 64,
                       3))), rf'{LABEL}.*\(48, 64, 3\), not rows and columns'),
    'label beyond the classes': (put((LABEL, classes(48, 64) + 1)),
                                 rf'{LABEL}.* holds \[3\], but the task has'),
    '16-bit label beyond 255': (put(
        (LABEL, DEEP_LABEL + 256)), rf'{LABEL}.* 8 bits and holds \[256, 257'),
    'folder that is missing':
    (remove('img/val'), r"val_dataset of task 'day' cannot be opened: .*img/"
     r'val.* data/README.md .*make_demo_data.py'),
    'folder that is missing in a wrapper':
    (wrapped_without_folder, 'Check data_root .*/data/day'),
    'training set without images':
    (remove('img/train/*'), "train_dataset of task 'day' is empty: no image"),
    'validation set without images': (remove('img/val/*'),
                                      "val_dataset of task 'day' is empty"),
}
CONFIGS = {
    'name with a path': (entry('name', '../day'), 'must start with a letter'),
    'name that is a number': (entry('name', 7), 'must start with .* got 7'),
    'name of 300 bytes': (entry('name', 'x' * 300), 'not exceed 200 bytes'),
    'name in Unicode': (entry('name', 'Z\u00fcrich \u971e'), None),
    'unknown key': (entry('iters', 3), r"unknown keys \['iters'\] .* has \["),
    'missing key':
    (lambda root, task: task.pop('val_dataset'), r"lacks \['val_dataset'\]"),
    'dataset as text': (entry('val_dataset', 'x'), "val_dataset .* got 'x'"),
    'dataset of no type': (field('type', 'Nope'), 'cannot be built.*Nope is'),
    'argument misspelt': (field('img_sufix', '.png'), "argument 'img_sufix'"),
    'suffix that matches nothing': (field('img_suffix',
                                          '.jpg'), "of task 'day' is empty"),
    'list of images that is missing': (field('ann_file', 'train.txt'),
                                       "train_dataset of task 'day' cannot"),
    'list of images in UTF-16':
    (listed_in_utf_16, r"train_dataset of task 'day'.*few.txt.* no UTF-8"),
    'driving dataset that is missing':
    (entry('val_dataset',
           dict(type='IDDLiteDataset', data_root='idd_lite', split='val')),
     "val_dataset of task 'day'.*data/idd_lite.*Expected"),
    'transform of no type': (steps('train', dict(type='Nope')),
                             'cannot be built.*Nope'),
    'pipeline without packing': (steps('train', 0,
                                       1), 'put PackSegInputs at its end'),
    'evaluation without labels': (steps('val', 0, 2), 'gives .* no labels'),
    'evaluation on resized labels':
    (steps('val', 0, 1, RESIZE,
           2), r'of size \(48, 64\) labels \(24, 32\): put Load'),
    'evaluation on resized images': (steps('val', 0, RESIZE, 1, 2), None),
    'iterations as text': (entry('max_iters', '5'), "whole number .* got '5'"),
    'no iterations': (entry('max_iters', 0), 'whole number >= 1, got 0'),
    'classes as text': (meta(classes='road',
                             palette=None), r"\('road', \) for one class"),
    'classes as numbers': (meta(classes=(1, 2, 3)), r'names, got \(1, 2, 3'),
    'class named twice': (meta(classes=('a', 'a', 'b')), r"\('a', 'a', 'b'\)"),
    'no classes': (lambda root, task: task['train_dataset'].pop('metainfo'),
                   'declares no classes: give it'),
    'other classes for evaluation':
    (field('metainfo', dict(classes=('a', 'b', 'c')), 'val'),
     r"'day' trains on the classes \('sky', .* val_dataset has \('a', 'b'"),
    'colours as numbers': (meta(palette=[1, 2, 3]), 'palette must be a list'),
    'a colour too few': (meta(palette=[[1, 2, 3]]), 'palette does not match'),
}


@pytest.mark.parametrize('spoil, message', [
    pytest.param(*case, id=name) for name, case in {
        **FILES,
        **CONFIGS
    }.items()
])
def test_input_is_usable_or_refused(open_tasks, builder, root, day, spoil,
                                    message):
    spoil(root, day)
    if message is not None:
        with pytest.raises(ValueError, match=f'(?s){message}'):
            open_tasks(day)
        return
    data = open_tasks(day)
    assert data.tasks[0].num_classes == 3
    for pixels, sample in samples_of(data, builder, 6):
        label = sample.gt_sem_seg.data
        assert pixels.shape == (3, *label.shape[-2:])
        assert set(label.unique().tolist()) <= {0, 1, 2, 255}


@pytest.mark.parametrize('values, absent', [
    ((0, 1), ['car']),
    ((0, 255), ['road', 'car']),
    ((255, 255), ['sky', 'road', 'car']),
])
def test_labels_of_a_single_class_are_told(open_tasks, root, day, capsys,
                                           values, absent):
    label = np.full((48, 64), values[0], np.uint8)
    label[::2] = values[1]
    put(*((f'ann/train/{i}.png', label) for i in range(6)))(root, day)
    open_tasks(day)
    told = f"train of task 'day': no label that was checked shows {absent}"
    printed = capsys.readouterr().out
    assert (told in printed) == (len(absent) > 1)
    assert 'val of task' not in printed


@pytest.mark.parametrize('tasks', ['day', 7, {'day': 1}, None, [], [None]])
def test_tasks_are_a_list_of_dicts(root, tasks):
    with pytest.raises(ValueError, match='must be a list of one or more dic'):
        TaskData(tasks, str(root), 5, 16)


def test_two_tasks_of_one_name_are_refused(open_tasks, day):
    with pytest.raises(ValueError, match="two tasks .* are called 'day'"):
        open_tasks(day, tiny_task('night'),
                   dict(tiny_task('night'), name='day'))


def test_number_of_checked_images_can_be_limited(open_tasks, root, day):
    (root / 'day' / 'img' / 'train' / '2.png').write_bytes(b'')
    open_tasks(day, num_checked=2)  # the first and the last one


# -- tasks --------------------------------------------------------------------


def test_tasks_keep_their_order_classes_and_palette(open_tasks, day):
    tasks = open_tasks(tiny_task('infrared'), day).tasks
    assert [task.name for task in tasks] == ['infrared', 'day']
    assert tasks[0].classes == ('cold', 'car')
    assert tasks[0].palette == ((0, 60, 100), (200, 30, 30))
    assert tasks[1].classes == ('sky', 'road', 'car')


def test_task_may_have_its_own_length_and_start(open_tasks, day):
    day.update(max_iters=7, init_from='base', family='colour')
    before = copy.deepcopy(day)
    task, other = open_tasks(day, tiny_task('night')).tasks
    assert (task.max_iters, task.init_from) == (7, 'base')
    assert (other.max_iters, other.init_from) == (5, None)
    assert (task.family, other.family) == ('colour', None)
    assert day == before
    twice = open_tasks(day, tiny_task('night'), budget=2).tasks
    assert [task.max_iters for task in twice] == [14, 10]


def test_task_may_be_evaluated_on_other_classes(open_tasks, root, day):
    day['train_dataset']['metainfo'] = dict(
        classes=('sky', 'road'), palette=[[1, 2, 3], [4, 5, 6]])
    for path in (root / 'day/ann/train').iterdir():
        label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert cv2.imwrite(str(path), label.clip(0, 1))
    task, = open_tasks(dict(day, eval_classes=['sky', 'road', 'car'])).tasks
    assert task.classes == ('sky', 'road')
    assert task.palette == ((1, 2, 3), (4, 5, 6))
    assert task.eval_classes == ('sky', 'road', 'car')
    with pytest.raises(ValueError, match='or eval_classes those of val_data'):
        open_tasks(dict(day, eval_classes=['sky', 'road']))


def test_tasks_can_be_learned_in_another_order():
    tasks = [dict(name='day'), dict(name='night')]
    assert in_order(tasks, ['night', 'day']) == tasks[::-1]
    assert in_order(tasks, None) is tasks


@pytest.mark.parametrize('order',
                         [['day'], ['day', 'day'], ['day', 'night', 'snow'],
                          [], 'day', 3, [['day'], 'night']])
def test_order_must_name_every_task_once(order):
    with pytest.raises(ValueError, match='train_cfg.order must name every'):
        in_order([dict(name='day'), dict(name='night')], order)


def test_data_root_is_joined_unless_it_is_absolute(open_tasks, day, root,
                                                   tiny_data):
    day['val_dataset']['data_root'] = str(tiny_data / 'day')
    task = open_tasks(day).tasks[0]
    assert task.train_dataset['data_root'] == str(root / 'day')
    assert task.val_dataset['data_root'] == str(tiny_data / 'day')


@pytest.mark.parametrize('value', ['', None])
def test_dataset_without_a_folder_of_its_own_gets_the_root(
        open_tasks, day, root, value):
    for split in ('train', 'val'):
        day[f'{split}_dataset'].update(
            data_root=value,
            data_prefix=dict(
                img_path=f'day/img/{split}', seg_map_path=f'day/ann/{split}'))
    assert open_tasks(day).tasks[0].train_dataset['data_root'] == f'{root}/'


# -- loaders ------------------------------------------------------------------


def samples_of(data, builder, count):
    """Image and data sample of the first training samples."""
    loader = data.train_loader(
        builder, data.tasks[0],
        dict(TEMPLATE, sampler=dict(type='DefaultSampler', shuffle=False)))
    # an endless stream, which begins with each image once
    return list(
        islice(((x, sample) for batch in loader
                for x, sample in zip(batch['inputs'], batch['data_samples'])),
               count))


def prototype_images(data, builder, max_images):
    """File and shape of the images that fit prototypes."""
    loader = data.prototype_loader(builder, data.tasks[0], TEMPLATE,
                                   max_images)
    return [(sample.img_path.split('/img/')[1], tuple(pixels.shape))
            for batch in loader
            for pixels, sample in zip(batch['inputs'], batch['data_samples'])]


def wrap(task, **wrapper):
    """The task with its training set in a wrapper, in place of 'inner'."""
    inner = task['train_dataset']
    meant = {'inner': inner, 'inner twice': [inner, copy.deepcopy(inner)]}
    return dict(
        task,
        train_dataset={
            key: meant.get(value, value) if isinstance(value, str) else value
            for key, value in wrapper.items()
        })


def test_training_images_are_cropped_and_name_their_task(
        open_tasks, builder, day):
    found = samples_of(open_tasks(day), builder, 6)
    assert {tuple(x.shape) for x, _ in found} == {(3, 32, 48)}
    assert {sample.task for _, sample in found} == {'day'}


def test_validation_images_come_once_and_in_order(open_tasks, builder, day):
    data = open_tasks(day)
    names = [
        sample.img_path.rsplit('/', 1)[1]
        for batch in data.val_loader(builder, data.tasks[0], TEMPLATE)
        for sample in batch['data_samples']
    ]
    assert names == ['0.png', '1.png', '2.png']


def test_prototypes_see_training_images_uncropped(open_tasks, builder, day):
    data = open_tasks(day)
    assert prototype_images(data, builder,
                            1000) == [(f'train/{i}.png', (3, 48, 64))
                                      for i in range(6)]
    # thinned out evenly
    assert [name for name, _ in prototype_images(data, builder, 3)
            ] == ['train/0.png', 'train/2.png', 'train/5.png']


@pytest.mark.parametrize('wrapper, length', [
    (dict(type='ConcatDataset', datasets='inner twice'), 12),
    (dict(type='RepeatDataset', dataset='inner', times=2), 12),
    (dict(
        type='ConcatDataset',
        datasets=[
            dict(
                type='RepeatDataset',
                dataset=tiny_task('day')['train_dataset'],
                times=2)
        ]), 12),
])
def test_wrapped_datasets_are_found_and_thinned_out(open_tasks, builder, day,
                                                    wrapper, length):
    data = open_tasks(wrap(day, **wrapper))
    found = samples_of(data, builder, length)
    assert len({sample.img_path for _, sample in found}) == 6
    images = prototype_images(data, builder, 4)
    assert [name for name, _ in images
            ] == ['train/0.png', 'train/3.png', 'train/1.png', 'train/5.png']
    assert {shape for _, shape in images} == {(3, 48, 64)}


def test_prototypes_see_no_mixed_images(open_tasks, builder, day):
    load, labels, *rest = day['train_dataset']['pipeline']
    day['train_dataset']['pipeline'] = [load, labels]
    mosaic = dict(type='RandomMosaic', prob=1, img_scale=(48, 64))
    data = open_tasks(
        wrap(
            day,
            type='MultiImageMixDataset',
            dataset='inner',
            pipeline=[mosaic, *rest]))
    assert prototype_images(data, builder,
                            1000) == [(f'train/{i}.png', (3, 48, 64))
                                      for i in range(6)]
