# SPDX-License-Identifier: Apache-2.0
"""What the page tells of a prediction."""
from __future__ import annotations

import base64
import io
import math

import numpy as np
import pytest
from PIL import Image

from mmseg_mile.apis.images import ImageContent
from mmseg_mile.apis.predictions import Prediction
from mmseg_mile.serving.result_view import MAX_WIDTH, ResultView
from mmseg_mile.visualization.class_colours import UNLABELLED

COLOURS = dict(sky=(0, 0, 255), road=(255, 0, 0))
LABELS = np.array([[0, 0, 0, 1], [255, 1, 0, 0]], np.uint8)


def view(labels=LABELS, **changes):
    image = np.full((*labels.shape, 3), 90, np.uint8)
    values = dict(
        name='a/b.jpg',
        labels=labels,
        classes=('sky', 'road'),
        palette=((1, 2, 3), (4, 5, 6)),
        expert='night',
        mixture=dict(day=0.25, night=0.75),
        distances=dict(fog=4.0, day=2.0, night=1.0),
        ood=False,
        abstained=False,
        ood_score=0.5,
        forced=False,
        seconds=0.25,
        source=ImageContent.of_array('b', image))
    values.update(changes)
    return ResultView(Prediction(**values), COLOURS)


def picture(address):
    kind, _, content = address.partition(';base64,')
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert kind == f'data:{image.get_format_mimetype()}'
    return image


def test_bars_are_sorted_and_as_long_as_the_distances():
    assert [tuple(bar) for bar in view().bars] == [
        ('night', '1', 25.0, '75 %'),
        ('day', '2', 50.0, '25 %'),
        ('fog', '4', 100.0, ''),
    ]


@pytest.mark.parametrize('distances, expected', [
    (dict(day=math.nan, night=math.nan), []),
    (dict(day=0.0), [0.0]),
    (dict(day=-2.0, night=1.0), [0.0, 100.0]),
])
def test_bars_of_odd_distances(distances, expected):
    assert [b.length for b in view(distances=distances).bars] == expected


def test_legend_names_what_occurs():
    assert [tuple(s)
            for s in view().legend] == [('sky', '#0000ff', '62.5 %'),
                                        ('road', '#ff0000', '25.0 %'),
                                        ('no label', '#dedede', '12.5 %')]
    rare = np.zeros((100, 100), np.uint8)
    rare[0, 0] = 1
    assert view(rare).legend[1].share == '< 0.1 %'


def test_map_is_in_the_colours_of_the_legend():
    colours = np.asarray(picture(view().map()).convert('RGB'))
    assert colours.shape == (2, 4, 3)
    assert tuple(colours[0, 0]) == COLOURS['sky']
    assert tuple(colours[0, 3]) == COLOURS['road']
    assert tuple(colours[1, 0]) == UNLABELLED


def test_labels_are_saved_as_they_are():
    shown = view()
    np.testing.assert_array_equal(np.asarray(picture(shown.labels())), LABELS)
    assert shown.labels_file == 'b_labels.png'
    wide = np.array([[299]], np.uint16)
    many = tuple(map(str, range(300)))
    colours = dict.fromkeys(many, (1, 1, 1))
    saved = ResultView(view(wide, classes=many).prediction, colours).labels()
    assert np.asarray(picture(saved)).item() == 299


def test_large_image_is_shown_smaller_and_saved_whole():
    shown = view(np.zeros((100, 2 * MAX_WIDTH), np.uint8))
    for address in (shown.photo(), shown.map()):
        assert picture(address).size == (MAX_WIDTH, 50)
    assert picture(shown.labels()).size == (2 * MAX_WIDTH, 100)


def test_html_says_it_in_words():
    html = view().render()
    assert '<h2>Experts 75 % night + 25 % day</h2>' in html
    assert 'a/b.jpg, 4 x 2 pixels, 0.25 s' in html
    assert 'class="flag"' not in html
    flagged = view(
        ood=True, ood_score=3.0, abstained=True, mixture={},
        expert=None).render()  # yapf: disable
    assert '<h2>No prediction</h2>' in flagged
    assert 'class="flag">Out-of-distribution: 3.00' in flagged


def test_forced_expert_has_no_table():
    html = view(
        forced=True, distances=dict(day=math.nan), mixture=dict(day=1.0),
        expert='day').render()  # yapf: disable
    assert '<table>' not in html and 'was asked for' in html
