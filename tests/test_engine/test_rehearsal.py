# SPDX-License-Identifier: Apache-2.0
"""Order, seeds and mixture of a task's training images."""
from __future__ import annotations

import random
import re
from fractions import Fraction
from itertools import islice

import numpy as np
import pytest
import torch
from tiny import tiny_task
from torch.utils.data import DataLoader, Subset

from mmseg.structures import SegDataSample
from mmseg_mile.engine import rehearsal
from mmseg_mile.engine.rehearsal import (MixedSampler, PositionedSampler,
                                         TrainingImages, check_rehearsal)

DOMAINS = ('day', 'night', 'infrared')
TEMPLATE = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True))


def first(count,
          skip=0,
          share=None,
          seed=3,
          task='day',
          rehearsed=6,
          **sampler):
    """(stream, position, image) of the first turns over five images."""
    sampler = dict(dict(type='InfiniteSampler', shuffle=True), **sampler)
    made = PositionedSampler(range(5), sampler, seed, task)
    if share is not None:
        others = PositionedSampler(
            range(rehearsed), sampler, seed + len(task), 'others', first=5)
        made = MixedSampler(made, others, Fraction(share))
    made.skip(skip)
    return list(islice(made, count))


def images_of(drawn):
    return [index for _, _, index in drawn]


# -- positions ----------------------------------------------------------------


def test_every_image_comes_once_per_pass():
    drawn = first(10)
    assert [position for _, position, _ in drawn] == list(range(10))
    assert sorted(images_of(drawn[:5])) == list(range(5))
    assert sorted(images_of(drawn[5:])) == list(range(5))


@pytest.mark.parametrize('skip', [0, 3, 5, 12])
@pytest.mark.parametrize('share', [None, '1/2', '1/3'])
def test_skipped_stream_goes_on_as_the_whole_one(skip, share):
    whole = first(4 + skip, share=share)
    assert first(4, skip, share) == whole[skip:]


def test_order_follows_from_the_seed():
    assert first(10) == first(10) != first(10, seed=4)


def test_finite_sampler_is_shuffled_anew_and_repeated():
    drawn = images_of(first(10, type='DefaultSampler', shuffle=True))
    assert sorted(drawn[:5]) == sorted(drawn[5:]) == list(range(5))
    assert drawn[:5] != drawn[5:]


@pytest.mark.parametrize('share', [None, '1/2'])
def test_processes_share_the_streams(monkeypatch, share):
    whole, shares = first(8, share=share), []
    for rank in (0, 1):
        for module in ('mmengine.dataset.sampler', rehearsal.__name__):
            monkeypatch.setattr(
                f'{module}.get_dist_info', lambda rank=rank: (rank, 2))
        shares.append(first(4, share=share))
    assert sorted(shares[0] + shares[1]) == sorted(whole)
    # each process has the same mixture
    kinds = [[stream for stream, _, _ in part] for part in shares]
    assert kinds[0] == kinds[1]


def test_sampler_without_images_is_refused():
    sampler = PositionedSampler(
        range(0), dict(type='DefaultSampler', round_up=False), 0, 'day')
    with pytest.raises(ValueError, match='gives process 0 no image'):
        next(iter(sampler))


# -- mixture ------------------------------------------------------------------


def test_a_quarter_is_every_fourth_turn():
    assert [stream for stream, _, _ in first(8, share='1/4')
            ] == ['day', 'day', 'day', 'others'] * 2


def test_both_streams_finish_a_pass_together_in_proportion():
    drawn = first(11, share='6/11')
    assert sorted(images_of(drawn)) == list(range(11))


def test_own_images_come_as_without_rehearsal():
    own = [item for item in first(12, share='1/2') if item[0] == 'day']
    assert own == first(6)


# -- augmentation -------------------------------------------------------------


class Noise:
    """Draws from every generator that transforms use."""

    metainfo = dict(classes=('road', ))

    def __len__(self):
        return 4

    def __getitem__(self, index):
        drawn = random.random(), np.random.rand(), torch.rand(()).item()
        return dict(data_samples=SegDataSample(), drawn=(index, *drawn))


def noise(seed=0):
    return TrainingImages(
        dict(day=Subset(Noise(), range(4)), night=Subset(Noise(), [3, 1])),
        seed)


def drawn(*item, seed=0):
    return noise(seed)[item]['drawn']


def test_transforms_follow_from_seed_stream_and_position():
    sample = drawn('day', 7, 1)
    assert sample == drawn('day', 7, 1)
    others = [
        drawn('day', 8, 1),
        drawn('night', 7, 1),
        drawn('day', 7, 1, seed=1)
    ]
    assert sample not in others


def test_process_draws_as_if_no_image_had_been_loaded():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    drawn('day', 0, 0)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize('num_workers', [1, 3])
def test_number_of_workers_changes_no_sample(num_workers):

    def load(num_workers):
        loader = DataLoader(
            noise(),
            batch_size=2,
            num_workers=num_workers,
            sampler=[('day', position, position % 6) for position in range(8)],
            collate_fn=list)
        return [sample['drawn'] for batch in loader for sample in batch]

    assert load(num_workers) == load(0)


def test_samples_name_their_task_and_the_set_is_the_own_one():
    images = noise()
    assert (len(images), images.metainfo) == (6, Noise.metainfo)
    tasks = [images['x', 0, i]['data_samples'].task for i in range(6)]
    assert tasks == ['day'] * 4 + ['night'] * 2
    assert drawn('x', 0, 4)[0] == 3


# -- images of other tasks ----------------------------------------------------


@pytest.fixture
def rehearsing(open_tasks):
    """``rehearsing(seed, **config)``: the three tasks, rehearsed."""

    def run(seed=0, **config):
        return open_tasks(
            *map(tiny_task, DOMAINS), rehearsal=config or None, seed=seed)

    return run


def trained(data, builder, index, count):
    """(task, image, pixels) of the first training samples of a task."""
    loader = data.train_loader(builder, data.tasks[index], TEMPLATE)
    samples = (
        sample for batch in loader
        for sample in zip(batch['inputs'], batch['data_samples']))
    return [(s.task, int(re.search(r'(\d+)\.png', s.img_path)[1]), x)
            for x, s in islice(samples, count)]


def names(samples):
    return [(task, image) for task, image, _ in samples]


def test_replay_takes_half_from_kept_images_of_earlier_tasks(
        rehearsing, builder):
    data = rehearsing(tasks='seen', images_per_task=2)
    drawn = names(trained(data, builder, 2, 16))
    assert {task for task, _ in drawn[::2]} == {'infrared'}
    # eight rehearsed images are two passes over two images of two tasks
    assert sorted(task
                  for task, _ in drawn[1::2]) == ['day'] * 4 + ['night'] * 4
    assert len(set(drawn[1::2])) == 4
    # the first task has nothing to replay
    assert names(trained(data, builder, 0,
                         6)) == names(trained(rehearsing(), builder, 0, 6))


def test_joint_training_shows_every_image_equally_often(rehearsing, builder):
    data = rehearsing(tasks='all', share=None)
    parts = [trained(data, builder, index, 18) for index in (0, 2)]
    for part in parts:
        assert sorted(names(part)) == sorted(
            (domain, image) for domain in DOMAINS for image in range(6))
    # in another order, and cropped differently
    assert names(parts[0]) != names(parts[1])
    (one, ), (other, ) = ([
        x for task, image, x in part if (task, image) == ('night', 0)
    ] for part in parts)
    assert not torch.equal(one, other)


class Listed(list):
    """A dataset of so many images, without files."""
    metainfo: dict = {}

    def __init__(self, size):
        super().__init__(range(size))

    def get_data_info(self, index):
        return {}


def test_equal_share_shows_every_task_as_often():
    datasets = dict(small=Listed(2), own=Listed(5), large=Listed(90))
    config = dict(type='InfiniteSampler', shuffle=True)

    def drawn(skip, count):
        mixed = rehearsal.Rehearsal(
            dict(tasks='all', share='equal'), datasets, 0)
        sampler = mixed.mix('own', config)['sampler']['type'](None, None)
        sampler.skip(skip)
        return images_of(islice(sampler, count))

    images = drawn(0, 60)
    # its own come first, then those of the others in the order of the stream
    assert np.bincount(np.digitize(images, [5, 7])).tolist() == [20, 20, 20]
    assert len({i for i in images if i >= 7}) == 20
    assert drawn(7, 53) == images[7:]


def test_kept_images_are_one_of_each_stretch_drawn_from_the_seed(
        rehearsing, builder):
    seen = set()
    for seed in range(6):
        data = rehearsing(seed, tasks='seen', images_per_task=3)
        kept = {i for t, i in names(trained(data, builder, 1, 12))
                if t == 'day'}  # yapf: disable
        assert sorted(image // 2 for image in kept) == [0, 1, 2]
        seen.add(tuple(sorted(kept)))
    assert len(seen) > 1


def test_kept_bytes_are_those_of_images_and_labels(rehearsing, root):
    sizes = [
        sum(path.stat().st_size
            for path in (root / domain).glob('*/train/*.png'))
        for domain in DOMAINS
    ]
    seen, every = rehearsing(tasks='seen'), rehearsing(tasks='all')
    few = rehearsing(tasks='seen', images_per_task=2)
    kept = [few.rehearsal.kept_bytes(index) for index in range(3)]
    assert [seen.rehearsal.kept_bytes(i)
            for i in range(3)] == np.cumsum(sizes).tolist()
    assert every.rehearsal.kept_bytes(0) == sum(sizes)
    assert 0 < kept[0] < sizes[0] / 2 and kept[0] < kept[1] < kept[2]
    assert rehearsing().rehearsal.kept_bytes(2) == 0


def test_mixed_images_cannot_be_kept_apart(open_tasks, day):
    load, labels, *rest = day['train_dataset']['pipeline']
    day['train_dataset']['pipeline'] = [load, labels]
    mosaic = dict(type='RandomMosaic', prob=1, img_scale=(48, 64))
    day['train_dataset'] = dict(
        type='MultiImageMixDataset',
        dataset=day['train_dataset'],
        pipeline=[mosaic, *rest])
    with pytest.raises(ValueError, match="'day' is a MultiImageMixDataset"):
        open_tasks(day, rehearsal=dict(tasks='seen', images_per_task=2))
    data = open_tasks(day, rehearsal=dict(tasks='seen'))
    assert data.rehearsal.kept_bytes(0) > 0


# -- refused ------------------------------------------------------------------


class Alone:
    rehearses = (None, )


class Replays:
    rehearses = (None, 'seen')


class Joint:
    rehearses = ('all', )


@pytest.mark.parametrize('kind, config, message', [
    (Replays, 'seen', "must be a dict with some of .*, got 'seen'"),
    (Replays, dict(tasks='seen', number=3), 'must be a dict with some of'),
    (Replays, dict(), "tasks must be 'seen' .* got None"),
    (Replays, dict(tasks='earlier'), "got 'earlier'"),
    (Replays, dict(tasks='seen', images_per_task=0), 'images_per_task .* 0'),
    (Replays, dict(tasks='seen', images_per_task=0.5), 'images_per_t.* 0.5'),
    (Replays, dict(tasks='seen', share=0.0), 'share must lie above 0 .* 0.0'),
    (Replays, dict(tasks='seen', share=1.0), 'share .* below 1.* got 1.0'),
    (Replays, dict(tasks='seen', share='half'), "share .* got 'half'"),
    (Alone, dict(tasks='seen'), 'Alone is trained without train_cfg.reh'),
    (Replays, dict(tasks='all'), "trained without .* or with .*tasks='seen'"),
    (Joint, dict(tasks='seen'), "Joint is trained with .*tasks='all'"),
    (Joint, None, ' is None, but Joint is trained with'),
])
def test_settings_that_do_not_fit_are_refused(kind, config, message):
    with pytest.raises(ValueError, match=f'train_cfg.rehearsal.*{message}'):
        check_rehearsal(kind(), config)


@pytest.mark.parametrize('kind, config', [
    (Alone, None),
    (Replays, None),
    (Replays, dict(tasks='seen', images_per_task=1, share=None)),
    (Joint, dict(tasks='all')),
])
def test_settings_that_fit_are_not(kind, config):
    check_rehearsal(kind(), config)
