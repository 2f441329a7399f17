# SPDX-License-Identifier: Apache-2.0
"""Own and rehearsed images take turns."""
from __future__ import annotations

from fractions import Fraction
from itertools import islice

import pytest
from torch.utils.data import DataLoader

from mmseg_mile.engine import task_images as positioned_sampler
from mmseg_mile.engine.rehearsal import MixedImages, MixedSampler
from mmseg_mile.engine.task_images import PositionedSampler, SeededDataset

HALF = Fraction(1, 2)


class Drawn:
    """Says which image was drawn, and what was drawn with it."""

    metainfo = dict(classes=('road', ))

    def __init__(self, name, size):
        self.name, self.size = name, size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        import torch
        return self.name, index, torch.rand(()).item()


def images(own=4, rehearsed=6, task='dusk'):
    return MixedImages(
        SeededDataset(Drawn('own', own), 0, task),
        SeededDataset(Drawn('other', rehearsed), 0, f'{task}/rehearsed'))


def first(count, share=HALF, skip=0, seed=3, task='dusk', **sampler):
    sampler = dict(dict(type='InfiniteSampler', shuffle=False), **sampler)
    made = MixedSampler(images(task=task), sampler, share, seed=seed)
    made.skip(skip)
    return list(islice(made, count))


def test_half_is_every_other_turn():
    # 4 own images in front, so 4 is the first rehearsed one
    assert first(8) == [(0, 0), (0, 4), (1, 1), (1, 5), (2, 2), (2, 6), (3, 3),
                        (3, 7)]


def test_a_quarter_is_every_fourth_turn():
    assert [index >= 4 for _, index in first(8, Fraction(1, 4))
            ] == [False, False, False, True] * 2


def test_both_streams_finish_a_pass_together_in_proportion():
    drawn = first(10, Fraction(6, 10), shuffle=True)
    assert sorted(index for _, index in drawn) == list(range(10))


@pytest.mark.parametrize('skip', [0, 1, 3, 4, 11])
def test_skipped_stream_goes_on_as_the_whole_one(skip):
    for share in (HALF, Fraction(1, 3)):
        whole = first(6 + skip, share, shuffle=True)
        assert first(6, share, skip, shuffle=True) == whole[skip:]


def test_own_images_come_as_without_rehearsal():
    sampler = dict(type='InfiniteSampler', shuffle=True)
    alone = PositionedSampler(range(4), sampler, seed=3)
    own = [item for item in first(12, shuffle=True) if item[1] < 4]
    assert own == list(islice(alone, 6))


def test_tasks_rehearse_in_different_orders():
    day, dusk = ([i for _, i in first(12, task=task, shuffle=True) if i >= 4]
                 for task in ('day', 'dusk'))
    assert sorted(day) == sorted(dusk) == list(range(4, 10))
    assert day != dusk


def test_processes_share_both_streams(monkeypatch):
    whole, shares = first(8, shuffle=True), []
    for rank in (0, 1):
        for module in ('mmengine.dataset.sampler',
                       positioned_sampler.__name__):
            monkeypatch.setattr(
                f'{module}.get_dist_info', lambda rank=rank: (rank, 2))
        shares.append(first(4, shuffle=True))
    # each process has the same mixture, both together what one would have
    assert [[i >= 4 for _, i in share]
            for share in shares] == [[False, True, False, True]] * 2
    assert sorted(shares[0] + shares[1]) == sorted(whole)


def test_image_is_drawn_by_its_own_stream_and_position():
    mixed = images()
    assert mixed[2, 1] == mixed.own[2, 1]
    assert mixed[2, 5] == mixed.rehearsed[2, 1]
    assert mixed[2, 5] != mixed[3, 5]
    # other random numbers at the same position
    assert mixed[2, 1][2] != mixed[2, 5][2]


def test_mixture_is_described_by_the_own_images():
    assert (len(images()), images().metainfo) == (10, Drawn.metainfo)


@pytest.mark.parametrize('num_workers', [1, 2])
def test_number_of_workers_changes_nothing(num_workers):

    def load(num_workers):
        sampler = dict(type='InfiniteSampler', shuffle=True)
        dataset = images()
        loader = DataLoader(
            dataset,
            batch_size=2,
            num_workers=num_workers,
            sampler=MixedSampler(dataset, sampler, HALF, seed=0),
            collate_fn=list)
        return list(islice(loader, 3))

    assert load(num_workers) == load(0)
