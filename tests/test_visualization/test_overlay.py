# SPDX-License-Identifier: Apache-2.0
"""A label map over its image, with a legend."""
from __future__ import annotations

import numpy as np
import pytest

from mmseg_mile.visualization.class_colours import UNLABELLED
from mmseg_mile.visualization.gallery import Caption
from mmseg_mile.visualization.overlay import (MAX_LEGEND_LINES, MIN_WIDTH,
                                              class_shares, draw_overlay)

COLOURS = dict(sky=(0, 0, 255), road=(255, 0, 0))
CLASSES = tuple(COLOURS)
IMAGE = np.full((100, 600, 3), 100, np.uint8)
LABELS = np.zeros((100, 600), np.uint8)
LABELS[:, 300:] = 1


def draw(labels=LABELS, image=IMAGE, **options):
    return draw_overlay(image, labels, CLASSES, COLOURS, **options)


def count(picture, colour):
    return int((picture == colour).all(axis=2).sum())


@pytest.mark.parametrize('opacity, expected', [
    (0.0, (100, 100, 100)),
    (1.0, (255, 0, 0)),
    (0.5, (178, 50, 50)),
])
def test_colours_cover_the_image_as_far_as_they_are_asked_to(
        opacity, expected):
    picture = draw(opacity=opacity)
    np.testing.assert_allclose(picture[50, 450], expected, atol=1)


def test_opacity_out_of_range_is_refused():
    with pytest.raises(ValueError, match='opacity must be 0 to 1, got 1.5'):
        draw(opacity=1.5)


def test_strip_lies_below_the_whole_image():
    picture = draw(opacity=0)
    assert picture.shape[1] == 600 and picture.shape[0] > 110
    np.testing.assert_array_equal(picture[:100], IMAGE)
    assert (picture[-1] == 255).all()


def test_legend_shows_the_classes_that_occur():
    both, only_sky = draw(), draw(labels=np.zeros_like(LABELS))
    assert count(both[100:], COLOURS['road']) > 50
    assert count(both[100:], COLOURS['sky']) > 50
    assert count(only_sky[100:], COLOURS['road']) == 0
    assert count(only_sky[100:], COLOURS['sky']) > 50


def test_fixed_legend_gives_frames_one_size():
    one = draw(labels=np.zeros_like(LABELS), legend=CLASSES)
    assert count(one[100:], COLOURS['road']) > 50
    assert one.shape == draw(legend=CLASSES).shape


def test_small_image_is_enlarged_by_a_whole_number():
    picture = draw(LABELS[:9, 295:305], IMAGE[:9, :10], opacity=1.0)
    times = MIN_WIDTH // 10
    assert picture.shape[1] == MIN_WIDTH
    half = picture[:9 * times]
    assert count(half, COLOURS['sky']) == count(half, COLOURS['road'])


def test_each_caption_takes_a_line_and_no_more():
    plain = draw().shape[0]
    one = draw(captions=[Caption('one', '#b26a00', bold=True)])
    endless = draw(captions=[Caption('endless ' * 99), Caption('two')])
    line = one.shape[0] - plain
    assert line > 10
    assert endless.shape[0] == plain + 2 * line
    assert endless.shape[1] == 600


def test_captions_have_their_colours():
    orange = draw(captions=[Caption('WORDS', '#ff8800', bold=True)])
    assert count(orange[100:], (255, 136, 0)) > 20
    assert count(draw()[100:], (255, 136, 0)) == 0


def test_long_legend_is_cut():
    names = [f'class number {i}' for i in range(200)]
    colours = {name: (i, 7, 9) for i, name in enumerate(names)}
    picture = draw_overlay(IMAGE, LABELS, names, colours, legend=names)
    again = draw_overlay(IMAGE, LABELS, names, colours, legend=names[:100])
    assert picture.shape == again.shape
    assert picture.shape[0] < 100 + (MAX_LEGEND_LINES + 1) * 25
    assert count(picture, colours[names[0]]) > 50
    assert count(picture, colours[names[-1]]) == 0


def test_names_in_other_scripts_are_drawn():
    picture = draw_overlay(IMAGE, LABELS, ('дорога', 'βροχή'), {
        'дорога': (1, 2, 3),
        'βροχή': (4, 5, 6)
    })
    assert count(picture[100:], (4, 5, 6)) > 50


def test_pixels_without_a_label_are_grey():
    picture = draw(labels=np.full_like(LABELS, 255), opacity=1.0)
    assert count(picture[:100], UNLABELLED) == 100 * 600


def test_shares_are_sorted_and_name_what_has_no_label():
    labels = np.array([[0, 1, 1, 255]])
    assert list(class_shares(labels, CLASSES).items()) == [('road', 0.5),
                                                           ('sky', 0.25),
                                                           ('no label', 0.25)]
    # of so many classes, 255 is one
    many = [str(i) for i in range(300)]
    assert class_shares(np.array([[255]]), many) == {'255': 1.0}
