# SPDX-License-Identifier: Apache-2.0
"""A table of odd and bad input: what comes in, and what happens.

The id of a case is the input; its last entry is None where the input is
usable, else what the ``ValueError`` must say.
"""
from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from tiny import tiny_task

SEED = np.random.default_rng(7)
IMAGE, LABEL = 'img/train/1.png', 'ann/train/1.png'


def pixels(*shape, depth=np.uint8):
    """Random values over the whole range of a type."""
    return SEED.integers(0, np.iinfo(depth).max, shape).astype(depth)


def classes(*shape):
    """A label map of three classes."""
    return SEED.integers(0, 3, shape).astype(np.uint8)


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


def jpeg_called_png(root, task):
    data = cv2.imencode('.jpg', pixels(48, 64, 3))[1].tobytes()
    (root / 'day' / IMAGE).write_bytes(data)


def text_called_jpg(root, task):
    (root / 'day' / 'img/train/notes.jpg').write_text('not looked at')


def keep_one(root, task):
    for kind in ('img', 'ann'):
        for number in range(1, 6):
            (root / 'day' / kind / 'train' / f'{number}.png').unlink()


def grey_task(root, task):
    put((IMAGE, pixels(48, 64, depth=np.uint16)))(root, task)
    task['train_dataset']['pipeline'][0] = dict(
        type='LoadSingleChannelImage', low=0, high=65535)
    for number in (0, 2, 3, 4, 5):
        put((f'img/train/{number}.png', pixels(48, 64)))(root, task)


def without(*names):
    """Only these classes in all labels of both splits."""

    def spoil(root, task):
        for path in (root / 'day' / 'ann').rglob('*.png'):
            label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            label[np.isin(label, names)] = 0
            assert cv2.imwrite(str(path), label)

    return spoil


def field(key, value, split='train'):
    """Change one field of a dataset."""

    def spoil(root, task):
        task[f'{split}_dataset'][key] = value

    return spoil


def meta(**values):
    """Change the metainfo of both datasets."""

    def spoil(root, task):
        for split in ('train', 'val'):
            metainfo = task[f'{split}_dataset']['metainfo']
            metainfo.update(values)
            if metainfo['palette'] is None:
                del metainfo['palette']

    return spoil


def steps(*kept):
    """Keep some steps of the training pipeline."""

    def spoil(root, task):
        pipeline = task['train_dataset']['pipeline']
        task['train_dataset']['pipeline'] = [pipeline[i] for i in kept]

    return spoil


def entry(key, value):
    """Change one field of the task."""
    return lambda root, task: task.update({key: value})


deep_label = classes(48, 64).astype(np.uint16)
FILES = {
    'image of odd size': (put((IMAGE, pixels(47, 61, 3)),
                              (LABEL, classes(47, 61))), None),
    'image smaller than the crop': (put((IMAGE, pixels(9, 5, 3)),
                                        (LABEL, classes(9, 5))), None),
    'grey image': (put((IMAGE, pixels(48, 64))), None),
    'RGBA image': (put((IMAGE, pixels(48, 64, 4))), None),
    '16-bit colour image': (put((IMAGE, pixels(48, 64, 3,
                                               depth=np.uint16))), None),
    '16-bit grey image': (grey_task, None),
    'JPEG called .png': (jpeg_called_png, None),
    'file of another suffix': (text_called_jpg, None),
    '16-bit label of small values': (put((LABEL, deep_label)), None),
    'one image': (keep_one, None),
    'class in no label': (without(2), None),
    'one class in all labels': (without(1, 2), None),
    'image of 1 pixel': (put((IMAGE, pixels(1, 1, 3)), (LABEL, classes(1, 1))),
                         rf'label .*{LABEL}.* shape \(\), not rows and col'),
    'empty image file': (put((IMAGE, b'')), rf"failed on image '.*{IMAGE}"),
    'empty label file': (put((LABEL, b'')), rf"failed .* label '.*{LABEL}"),
    'text called .png': (put((IMAGE, b'hello')), rf"image '.*{IMAGE}"),
    'cut image': (put(
        (IMAGE, cv2.imencode('.png', pixels(48, 64, 3))[1].tobytes()[:99])),
                  rf"image '.*{IMAGE}"),
    'label smaller than its image': (put(
        (LABEL, classes(24, 32))), rf'{LABEL}.*\(24, 32\).*\(48, 64\): both'),
    'label larger than its image': (put(
        (LABEL, classes(96, 128))), rf'{LABEL}.*\(96, 128\).*\(48, 64\)'),
    'colour label': (put(
        (LABEL, pixels(48, 64,
                       3))), rf'{LABEL}.*\(48, 64, 3\), not rows and columns'),
    'label beyond the classes': (put((LABEL, classes(48, 64) + 1)),
                                 rf'{LABEL}.* holds \[3\], but the task has'),
    '16-bit label beyond 255': (put((LABEL, deep_label + 256)),
                                rf'{LABEL}.* 16 bits and holds \[256, 257'),
}
CONFIGS = {
    'name with a path': (entry('name', '../day'), 'must start with a letter'),
    'name that is absolute': (entry('name', '/day'), 'must start with a let'),
    'name that is a number': (entry('name', 7), 'must start with .* got 7'),
    'name of 300 bytes': (entry('name', 'x' * 300), 'not exceed 200 bytes'),
    'name in Unicode': (entry('name', 'Z\u00fcrich \u971e'), None),
    'dataset None': (entry('train_dataset', None), 'must be a dict with a'),
    'dataset as text': (entry('val_dataset', 'x'), "val_dataset .* got 'x'"),
    'dataset of no type': (field('type', 'Nope'), 'cannot be built.*Nope is'),
    'argument misspelt': (field('img_sufix', '.png'), "argument 'img_sufix'"),
    'transform of no type':
    (field('pipeline', [dict(type='Nope')]), 'cannot be built.*Nope'),
    'pipeline without packing': (steps(0, 1), 'put PackSegInputs at its end'),
    'pipeline without labels': (steps(0, 4), 'put LoadAnnotations before'),
    'pipeline that is empty': (steps(), 'put PackSegInputs at its end'),
    'iterations as text': (entry('max_iters', '5'), "whole number .* got '5'"),
    'half an iteration': (entry('max_iters', 2.5), 'whole number .* got 2.5'),
    'iterations True': (entry('max_iters', True), 'whole number .* got True'),
    'start that is a number': (entry('init_from', 3), 'must be a name, got 3'),
    'classes as text': (meta(classes='road',
                             palette=None), r"\('road', \) for one class"),
    'classes as numbers': (meta(classes=(1, 2, 3)), r'names, got \(1, 2, 3'),
    'class named twice': (meta(classes=('a', 'a', 'b')), 'names a class twic'),
    'colours as numbers': (meta(palette=[1, 2, 3]), 'palette must be a list'),
    'a colour too few': (meta(palette=[[1, 2, 3]]), 'palette does not match'),
}


@pytest.mark.parametrize('spoil, message', [
    pytest.param(*case, id=name) for name, case in {
        **FILES,
        **CONFIGS
    }.items()
])
def test_input_is_usable_or_refused(open_tasks, root, day, spoil, message):
    spoil(root, day)
    if message is None:
        assert open_tasks(day).tasks[0].num_classes == 3
        return
    with pytest.raises(ValueError, match=message):
        open_tasks(day)


@pytest.mark.parametrize(
    'tasks, message', [
        ('day', 'must be a list of dicts'),
        (7, 'must be a list of dicts'),
        (dict(day={}), 'must be a list of dicts'),
        (None, 'train_cfg.tasks is empty'),
        ([None], r'tasks\[0\] must be a dict with'),
        (['day'], r'tasks\[0\] must be a dict with'),
    ],
    ids=['text', 'number', 'dict', 'None', 'list of None', 'list of text'])
def test_tasks_are_a_list_of_dicts(root, tasks, message):
    from mmseg_mile.engine.task_data import TaskData
    with pytest.raises(ValueError, match=message):
        TaskData(tasks, str(root), 5, 16)


@pytest.mark.parametrize('name, other', [('day', 'Day'), ('\ufb01t', 'fit'),
                                         ('day', 'day')])
def test_names_that_some_disks_take_for_one_are_refused(
        open_tasks, day, name, other):
    with pytest.raises(ValueError, match='two tasks of the stream are called'):
        open_tasks(dict(day, name=name), dict(tiny_task('night'), name=other))


def test_thousand_tasks_are_opened(open_tasks, day):
    tasks = [dict(day, name=f'day {index}') for index in range(1000)]
    assert len(open_tasks(*tasks, num_checked=1).tasks) == 1000


@pytest.mark.parametrize('spoil', [
    pytest.param(spoil, id=name)
    for name, (spoil, message) in FILES.items() if message is None
])
def test_usable_images_become_three_channels_and_their_labels(
        open_tasks, root, day, spoil):
    spoil(root, day)
    for sample in open_tasks(day)._datasets['day', 'train']:
        label = sample['data_samples'].gt_sem_seg.data
        assert sample['inputs'].shape == (3, *label.shape[-2:])
        assert set(label.unique().tolist()) <= {0, 1, 2, 255}


def odd_images(root, task):
    """All odd images at once, in training and in evaluation."""
    put((IMAGE, pixels(47, 61, 3)), (LABEL, classes(47, 61)),
        ('img/train/2.png', pixels(48, 64)),
        ('img/train/3.png', pixels(48, 64, 4)),
        ('img/val/0.png', pixels(35, 51, 3)),
        ('ann/val/0.png', np.zeros(
            (35, 51), np.uint8)), ('img/val/1.png', pixels(48, 64, 4)),
        ('img/val/2.png', pixels(48, 64)))(root, task)


@pytest.mark.integration
def test_stream_of_odd_images_is_learned(root, tiny_config, tmp_path, learn):
    odd_images(root, None)
    for path in (root / 'night' / 'img' / 'train').glob('[1-5].png'):
        path.unlink()  # one image is left
    for path in (root / 'night' / 'ann').rglob('*.png'):
        label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        label[label == 2] = 255  # no car in training or evaluation
        assert cv2.imwrite(str(path), label)
    run = learn(
        tiny_config(
            tmp_path / 'run', ('day', 'night'),
            train_cfg__data_root=str(root),
            train_cfg__max_iters=2))
    results = run.runner.train_loop.results
    assert np.isfinite(results.miou['routed']).all()
    assert np.isnan(results.class_iou['oracle']['night']['car'])
    assert torch.isfinite(torch.tensor(results.miou['oracle'][1])).all()
