# SPDX-License-Identifier: Apache-2.0
"""Positions in an endless stream of images."""
from __future__ import annotations

from itertools import islice

import pytest

from mmseg_mile.engine import task_images as positioned_sampler
from mmseg_mile.engine.task_images import PositionedSampler


def first(count, skip=0, size=5, seed=3, **sampler):
    sampler = dict(type='InfiniteSampler', shuffle=True, **sampler)
    made = PositionedSampler(range(size), sampler, seed=seed)
    made.skip(skip)
    return list(islice(made, count))


def test_every_image_comes_once_per_pass():
    drawn = first(10)
    assert [position for position, _ in drawn] == list(range(10))
    for turn in (drawn[:5], drawn[5:]):
        assert sorted(index for _, index in turn) == list(range(5))


@pytest.mark.parametrize('skip', [0, 3, 5, 12])
def test_skipped_stream_goes_on_as_the_whole_one(skip):
    assert first(4, skip) == first(4 + skip)[skip:]


def test_order_follows_from_the_seed():
    assert first(10) == first(10) != first(10, seed=4)


def test_finite_sampler_is_shuffled_anew_and_repeated():
    sampler = PositionedSampler(
        range(8), dict(type='DefaultSampler', shuffle=True), seed=0)
    drawn = [index for _, index in islice(sampler, 16)]
    assert sorted(drawn[:8]) == sorted(drawn[8:]) == list(range(8))
    assert drawn[:8] != drawn[8:]


def test_processes_share_one_stream(monkeypatch):
    whole, shares = first(6), []
    for rank in (0, 1):
        for module in ('mmengine.dataset.sampler', positioned_sampler):
            name = f'{module}.get_dist_info' if isinstance(
                module, str) else f'{module.__name__}.get_dist_info'
            monkeypatch.setattr(name, lambda rank=rank: (rank, 2))
        shares.append(first(3))
    assert sorted(shares[0] + shares[1]) == whole


def test_sampler_without_images_is_refused():
    sampler = PositionedSampler(
        range(0), dict(type='DefaultSampler', round_up=False), seed=0)
    with pytest.raises(ValueError, match='gives process 0 no image'):
        next(iter(sampler))
