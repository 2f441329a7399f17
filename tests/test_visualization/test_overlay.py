# SPDX-License-Identifier: Apache-2.0
"""Images and label maps to look at."""
from __future__ import annotations

import cv2
import numpy as np
import pytest

# yapf: disable
from mmseg_mile.visualization.overlay import (MAX_LEGEND_LINES, MIN_WIDTH,
                                              UNLABELLED, Caption,
                                              choose_class_colours,
                                              class_shares, draw_overlay,
                                              paint_labels,
                                              read_image_for_display)

# yapf: enable

RED, BLUE = (200, 0, 0), (0, 0, 200)
COLOURS = dict(sky=(0, 0, 255), road=(255, 0, 0))
CLASSES = tuple(COLOURS)
IMAGE = np.full((100, 600, 3), 100, np.uint8)
LABELS = np.zeros((100, 600), np.uint8)
LABELS[:, 300:] = 1


def draw(labels=LABELS, image=IMAGE, **options):
    return draw_overlay(image, labels, CLASSES, COLOURS, **options)


def count(picture, colour):
    return int((picture == colour).all(axis=2).sum())


# -- colours --------------------------------------------------------------


def test_first_palette_with_a_name_decides():
    colours = choose_class_colours([(('road', ), (RED, )),
                                    (('sky', 'road'), (BLUE, BLUE))])
    assert colours == {'road': RED, 'sky': BLUE}


def test_classes_of_one_colour_are_told_apart():
    names = tuple('abcdefgh')
    colours = choose_class_colours([(names, [RED] * 8)])
    assert colours['a'] == RED and len(set(colours.values())) == 8
    # no class looks unlabelled
    snow = choose_class_colours([(('snow', ), (UNLABELLED, ))])
    assert snow['snow'] != UNLABELLED


def test_labels_get_the_colours_of_their_names():
    labels = np.array([[0, 1, 255]], np.uint8)
    picture = paint_labels(labels, ('sky', 'road'), dict(road=RED, sky=BLUE))
    assert picture.dtype == np.uint8
    assert picture.tolist() == [[list(BLUE), list(RED), list(UNLABELLED)]]


def test_shares_are_sorted_and_name_what_has_no_label():
    labels = np.array([[0, 1, 1, 255]])
    assert list(class_shares(labels, CLASSES).items()) == [('road', 0.5),
                                                           ('sky', 0.25),
                                                           ('no label', 0.25)]
    # of so many classes, 255 is one
    many = [str(i) for i in range(300)]
    assert class_shares(np.array([[255]]), many) == {'255': 1.0}


# -- overlays -------------------------------------------------------------


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
    assert min(count(both[100:], c) for c in COLOURS.values()) > 50
    assert count(only_sky[100:], COLOURS['road']) == 0
    assert count(only_sky[100:], COLOURS['sky']) > 50


def test_fixed_legend_gives_frames_one_size():
    one = draw(labels=np.zeros_like(LABELS), legend=CLASSES)
    assert count(one[100:], COLOURS['road']) > 50
    assert one.shape == draw(legend=CLASSES).shape


@pytest.mark.parametrize('height, width', [(21000, 3), (70000, 1)])
def test_narrow_image_is_enlarged_as_far_as_a_jpeg_has_room(height, width):
    image = np.zeros((height, 1, 3), np.uint8)
    assert draw(image[..., 0], image).shape[1] == width


def test_small_image_is_enlarged_by_a_whole_number():
    picture = draw(LABELS[:9, 295:305], IMAGE[:9, :10], opacity=1.0)
    times = MIN_WIDTH // 10
    assert picture.shape[1] == MIN_WIDTH
    half = picture[:9 * times]
    assert count(half, COLOURS['sky']) == count(half, COLOURS['road'])


def test_each_caption_takes_a_line_and_no_more():
    plain = draw().shape[0]
    one = draw(captions=[Caption('ONE', '#ff8800', bold=True)])
    endless = draw(captions=[Caption('endless ' * 99), Caption('two')])
    line = one.shape[0] - plain
    assert line > 10 and count(one[100:], (255, 136, 0)) > 20
    assert endless.shape == (plain + 2 * line, 600, 3)


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
    colours = {'дорога': (1, 2, 3), 'βροχή': (4, 5, 6)}
    picture = draw_overlay(IMAGE, LABELS, tuple(colours), colours)
    assert count(picture[100:], (4, 5, 6)) > 50


# -- images ---------------------------------------------------------------


def shown(tmp_path, image):
    path = tmp_path / 'a.png'
    assert cv2.imwrite(str(path), image)
    found = read_image_for_display(path)
    assert found.dtype == np.uint8 and found.shape == (*image.shape[:2], 3)
    return found


@pytest.mark.parametrize('pixel, expected', [
    ((250, 20, 10), [10, 20, 250]),
    (7, [7, 7, 7]),
    ((1, 2, 3, 0), [3, 2, 1]),
])
def test_eight_bits_are_shown_as_they_are_in_rgb(tmp_path, pixel, expected):
    image = np.full((2, 3, *np.shape(pixel)), pixel, np.uint8)
    assert shown(tmp_path, image)[0, 0].tolist() == expected


def test_deeper_images_are_stretched(tmp_path):
    # thermal counts: a narrow band far from both ends of the range, without
    # a reading at the borders, and with a hot pixel
    image = np.zeros((40, 120), np.uint16)
    image[:, 10:110] = np.linspace(22000, 24000, 100)
    image[0, 10] = 65535
    found = shown(tmp_path, image)[1, :, 0]
    assert found[12] < 10 and found[107] > 245
    assert abs(int(found[60]) - 128) < 10
    assert shown(tmp_path, np.full((4, 4), 9000, np.uint16)).max() == 0


@pytest.mark.parametrize('content', [b'', b'no image'])
def test_broken_image_is_named(tmp_path, content):
    path = tmp_path / 'broken.png'
    path.write_bytes(content)
    with pytest.raises(ValueError, match='broken.png'):
        read_image_for_display(path)
