# SPDX-License-Identifier: Apache-2.0
"""Which images of which tasks are trained together."""
from __future__ import annotations

import logging
import re
from itertools import islice
from types import SimpleNamespace

import pytest
from mmengine.runner import Runner
from tiny import tiny_task

from mmseg_mile.engine.rehearsal import (check_extension,
                                         check_rehearsal_config,
                                         check_rehearses)
from mmseg_mile.methods.baselines.fine_tune_segmentor import (
    FineTuneSegmentor, JointSegmentor)
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor

TEMPLATE = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True))
DOMAINS = ('day', 'night', 'infrared')


@pytest.fixture
def rehearsing(open_tasks):
    """``rehearsing(seed, **config)``: the three tasks, rehearsed."""

    def run(seed=0, **config):
        data = open_tasks(*map(tiny_task, DOMAINS))
        data.rehearse(config, seed)
        return data

    return run


def drawn(data, index, count, seed=0, skip=0):
    """(task, image) of the first training samples of a task."""
    runner = SimpleNamespace(
        build_dataloader=Runner.build_dataloader,
        seed=seed,
        logger=logging.getLogger('test_rehearsal'))
    loader = data.train_loader(runner, data.tasks[index], TEMPLATE)
    loader.sampler.skip(skip)
    samples = (
        sample for batch in loader
        for sample in zip(batch['inputs'], batch['data_samples']))
    return [(s.task, int(re.search(r'(\d+)\.png', s.img_path)[1]), x)
            for x, s in islice(samples, count)]


def names(samples):
    return [(task, image) for task, image, _ in samples]


def test_samples_name_their_task_without_rehearsal(open_tasks, day):
    data = open_tasks(day, tiny_task('night'))
    assert {task for task, _, _ in drawn(data, 1, 6)} == {'night'}


def test_first_task_has_nothing_to_replay(rehearsing, open_tasks):
    replay = drawn(rehearsing(tasks='seen', images_per_task=2), 0, 6)
    alone = drawn(open_tasks(*map(tiny_task, DOMAINS)), 0, 6)
    assert names(replay) == names(alone)


def test_replay_takes_half_from_the_earlier_tasks(rehearsing):
    tasks = [
        task for task, _, _ in drawn(
            rehearsing(tasks='seen', images_per_task=2), 2, 16)
    ]
    assert set(tasks[::2]) == {'infrared'}
    # eight rehearsed images are two passes over two images of two tasks
    assert sorted(tasks[1::2]) == ['day'] * 4 + ['night'] * 4


def test_share_decides_how_many(rehearsing):
    data = rehearsing(tasks='seen', images_per_task=2, share=0.25)
    tasks = [task for task, _, _ in drawn(data, 1, 16)]
    assert [i for i, task in enumerate(tasks)
            if task == 'day'] == [3, 7, 11, 15]


@pytest.mark.parametrize('index', [0, 1, 2])
def test_joint_training_shows_every_image_equally_often(rehearsing, index):
    data = rehearsing(tasks='all', share=None)
    assert sorted(names(drawn(data, index, 18))) == sorted(
        (domain, image) for domain in DOMAINS for image in range(6))


def test_kept_images_are_one_of_each_equal_stretch(rehearsing):
    for seed in range(8):
        first, second, third = rehearsing(
            seed, tasks='seen',
            images_per_task=3).rehearsal.images('day').indices
        assert (first in (0, 1)) and (second in (2, 3)) and (third in (4, 5))


def test_kept_images_follow_from_seed_and_task(rehearsing):

    def chosen(seed, task='day'):
        data = rehearsing(seed, tasks='seen', images_per_task=3)
        return data.rehearsal.images(task).indices

    assert chosen(0) == chosen(0)
    assert len({tuple(chosen(seed)) for seed in range(8)}) > 1
    assert any(chosen(s) != chosen(s, 'night') for s in range(8))


def test_only_kept_images_are_replayed(rehearsing):
    data = rehearsing(tasks='seen', images_per_task=2)
    kept = set(data.rehearsal.images('day').indices)
    assert {image
            for task, image, _ in drawn(data, 1, 16) if task == 'day'} == kept


def test_task_with_fewer_images_keeps_all(rehearsing):
    data = rehearsing(tasks='seen', images_per_task=7)
    assert len(data.rehearsal.images('day')) == 6


@pytest.mark.parametrize('config', [
    dict(tasks='seen', images_per_task=2),
    dict(tasks='all', share=None),
])
def test_stream_goes_on_where_it_was_left(rehearsing, config):
    data = rehearsing(**config)
    whole, rest = drawn(data, 1, 10), drawn(data, 1, 6, skip=4)
    assert names(whole)[4:] == names(rest)
    assert all((a[2] == b[2]).all() for a, b in zip(whole[4:], rest))


def test_image_of_two_tasks_is_cropped_differently(rehearsing):
    data = rehearsing(tasks='all', share=None)
    (day, ), (night, ) = ([
        pixels for task, image, pixels in drawn(data, index, 18)
        if (task, image) == ('infrared', 0)
    ] for index in (0, 1))
    assert not (day == night).all()


def test_kept_bytes_are_those_of_images_and_labels(rehearsing, root):

    def size(domain, images):
        return sum((root / domain / kind / 'train' / f'{i}.png').stat().st_size
                   for kind in ('img', 'ann') for i in images)

    data = rehearsing(tasks='seen', images_per_task=2)
    kept = [data.rehearsal.images(d).indices for d in DOMAINS]
    assert data.kept_bytes(0) == size('day', kept[0])
    assert data.kept_bytes(1) == size('day', kept[0]) + size('night', kept[1])
    everything = sum(size(domain, range(6)) for domain in DOMAINS)
    assert rehearsing(tasks='all').kept_bytes(0) == everything


def test_nothing_is_kept_without_rehearsal(open_tasks, day):
    assert open_tasks(day).kept_bytes(0) == 0


# -- refused ------------------------------------------------------------------


@pytest.mark.parametrize('config, message', [
    ('seen', "must be a dict with some of .*, got 'seen'"),
    (dict(tasks='seen', number=3), 'must be a dict with some of'),
    (dict(), "tasks must be 'seen' .* got None"),
    (dict(tasks='earlier'), "got 'earlier'"),
    (dict(tasks='seen', images_per_task=0), 'images_per_task .* got 0'),
    (dict(tasks='seen', images_per_task=0.5), 'images_per_task .* got 0.5'),
    (dict(tasks='seen', share=0.0), 'share must lie above 0 .* got 0.0'),
    (dict(tasks='seen', share=1.0), 'share .* below 1.* got 1.0'),
    (dict(tasks='seen', share='half'), "share .* got 'half'"),
])
def test_settings_without_meaning_are_refused(config, message):
    with pytest.raises(ValueError, match=f'train_cfg.rehearsal.*{message}'):
        check_rehearsal_config(config)


def test_mixed_images_cannot_be_kept_apart(open_tasks, day):
    load, labels, *rest = day['train_dataset']['pipeline']
    day['train_dataset']['pipeline'] = [load, labels]
    day['train_dataset'] = dict(
        type='MultiImageMixDataset',
        dataset=day['train_dataset'],
        pipeline=[
            dict(type='RandomMosaic', prob=1, img_scale=(48, 64)), *rest
        ])
    data = open_tasks(day, tiny_task('night'))
    with pytest.raises(ValueError, match="'day' is a MultiImageMixDataset"):
        data.rehearse(dict(tasks='seen', images_per_task=2), 0)
    data.rehearse(dict(tasks='seen'), 0)
    assert data.kept_bytes(0) > 0


@pytest.mark.parametrize('method, tasks, message', [
    (ExpertSegmentor, 'seen', 'ExpertSegmentor is trained without'),
    (FineTuneSegmentor, 'all',
     "without train_cfg.rehearsal or with .*tasks='seen'"),
    (JointSegmentor, 'seen', "JointSegmentor is trained with .*tasks='all'"),
    (JointSegmentor, None, "rehearsal is None, but JointSegmentor is trained"),
])
def test_method_that_would_learn_wrong_labels_is_refused(
        method, tasks, message):
    model = method.__new__(method)
    with pytest.raises(ValueError, match=message):
        check_rehearses(model, tasks and dict(tasks=tasks))


@pytest.mark.parametrize('method, tasks', [
    (ExpertSegmentor, None),
    (FineTuneSegmentor, None),
    (FineTuneSegmentor, 'seen'),
    (JointSegmentor, 'all'),
])
def test_method_that_can_learn_them_is_not(method, tasks):
    check_rehearses(method.__new__(method), tasks and dict(tasks=tasks))


def test_joint_stream_cannot_be_extended():
    joint, replay = dict(tasks='all'), dict(tasks='seen')
    with pytest.raises(ValueError, match=r"the tasks \['night'\] would have"):
        check_extension(joint, ['day'], ['day', 'night'])
    check_extension(joint, ['day', 'night'], ['day', 'night'])
    for config in (replay, None):
        check_extension(config, ['day'], ['day', 'night'])
