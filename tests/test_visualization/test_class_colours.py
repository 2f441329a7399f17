# SPDX-License-Identifier: Apache-2.0
import numpy as np

from mmseg_mile.visualization.class_colours import (UNLABELLED,
                                                    choose_class_colours,
                                                    paint_labels)

RED, BLUE = (200, 0, 0), (0, 0, 200)


def test_first_palette_with_a_name_decides() -> None:
    colours = choose_class_colours([(('road', ), (RED, )),
                                    (('sky', 'road'), (BLUE, BLUE))])

    assert colours == {'road': RED, 'sky': BLUE}


def test_classes_of_one_colour_are_told_apart() -> None:
    names = tuple('abcdefgh')
    colours = choose_class_colours([(names, [RED] * len(names))])

    assert colours['a'] == RED
    assert len(set(colours.values())) == len(names)


def test_no_class_looks_unlabelled() -> None:
    assert choose_class_colours([(('snow', ), (UNLABELLED, ))
                                 ])['snow'] != UNLABELLED


def test_labels_get_the_colours_of_their_names() -> None:
    picture = paint_labels(
        np.array([[0, 1, 255]], np.uint8), ('sky', 'road'), {
            'road': RED,
            'sky': BLUE
        })

    assert picture.dtype == np.uint8
    assert picture.tolist() == [[list(BLUE), list(RED), list(UNLABELLED)]]
