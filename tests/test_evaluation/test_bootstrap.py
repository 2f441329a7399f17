# SPDX-License-Identifier: Apache-2.0
"""Differences of two methods under resampled images."""
from __future__ import annotations

import pytest

from mmseg_mile.evaluation.bootstrap import paired_bootstrap
from mmseg_mile.evaluation.routing_log import RoutedImage


def image(name, hits, sequence=None, size=10, task='day'):
    """An image of one class, of which so many of ``size`` pixels are hit."""
    return RoutedImage(
        after='day',
        task=task,
        dataset='D',
        file=name,
        sequence=sequence,
        areas=dict(road=[hits, size, hits]) if size else {})


def run(*hits, sequences=None, task='day'):
    names = sequences or [f's{index}' for index in range(len(hits))]
    return {
        task:
        [image(f'{i}.png', h, n) for i, (h, n) in enumerate(zip(hits, names))]
    }


def test_points_are_those_of_summed_areas():
    # 12 of 20 pixels against 9 of 20, not the mean of images' scores
    ours = {'day': [image('a', 2, 'a', 2), image('b', 10, 'b', 18)]}
    theirs = {'day': [image('a', 0, 'a', 2), image('b', 9, 'b', 18)]}
    assert paired_bootstrap([ours], [theirs]).points == pytest.approx(15)


def test_two_images_give_the_three_draws_there_are():
    # +40 and -20 points: both, the first twice, the second twice
    found = paired_bootstrap([run(6, 4)], [run(2, 6)], 400)
    assert found.points == pytest.approx(10)
    assert (found.low, found.high) == pytest.approx((-20, 40))
    assert not found.is_significant


def test_methods_are_drawn_together():
    # images differ by 50 points, methods by ten on each
    found = paired_bootstrap([run(2, 7, 3, 6)], [run(1, 6, 2, 5)])
    assert (found.low, found.points, found.high) == pytest.approx((10, ) * 3)
    assert found.is_significant


def test_frames_of_a_drive_come_together():
    hits = (7, 7, 7, 7, 3, 3, 3, 3)
    alone = paired_bootstrap([run(*hits)], [run(*[4] * 8)])
    drives = ['x'] * 4 + ['y'] * 4
    together = paired_bootstrap([run(*hits, sequences=drives)],
                                [run(*[4] * 8, sequences=drives)])
    assert alone.points == together.points == pytest.approx(10)
    assert together.low < alone.low and alone.high < together.high
    # of one drive nothing but frames can be drawn
    drives = ['x'] * 8
    one = paired_bootstrap([run(*hits, sequences=drives)],
                           [run(*[4] * 8, sequences=drives)])
    assert (one.low, one.high) == (alone.low, alone.high)


def test_seeds_have_to_agree():
    ours, theirs = [run(9, 9), run(3, 3)], [run(4, 4), run(4, 4)]
    found = paired_bootstrap(ours, theirs)
    assert found.by_seed == pytest.approx((50, -10))
    assert found.points == found.low == found.high == pytest.approx(20)
    assert not found.is_significant
    assert paired_bootstrap(ours[:1], theirs[:1]).is_significant


def test_tasks_count_alike_however_many_images_they_have():
    ours = {**run(5, 5, 5), **run(9, task='night')}
    theirs = {**run(5, 5, 5), **run(5, task='night')}
    found = paired_bootstrap([ours], [theirs])
    assert (found.low, found.points, found.high) == pytest.approx((20, ) * 3)


def test_class_that_a_draw_does_not_show_is_left_out():
    rare = image('1.png', 5, 's1')
    rare.areas['kerb'] = [0, 4, 0]
    ours = {'day': [image('0.png', 5, 's0'), rare]}
    found = paired_bootstrap([ours], [run(5, 5)])
    # with the kerb 25 on average, without it 50
    assert (found.low, found.points, found.high) == pytest.approx(
        (-25, -25, 0))


@pytest.mark.parametrize('theirs, message', [
    (run(1, 2, 3), "other images of 'day'"),
    ({}, "other images of 'day'"),
    ({'day': [image(f'{i}.png', 0, size=0) for i in range(2)]},
     'holds no areas'),
])  # yapf: disable
def test_runs_that_cannot_be_paired_are_refused(theirs, message):
    with pytest.raises(ValueError, match=message):
        paired_bootstrap([run(1, 2)], [theirs])
