# SPDX-License-Identifier: Apache-2.0
import os

import numpy as np
import pytest
from PIL import Image

from mmseg_mile.datasets.idd import (draw_polygons, read_polygons,
                                     single_label, write_mask)

IDS = dict(road=0, car=13, sky=255)


def annotation(*objects):
    """5 x 8 image; objects are (label, left, top, right, bottom)."""
    return dict(
        imgHeight=5,
        imgWidth=8,
        objects=[
            dict(
                label=label, polygon=[[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
            for label, x0, y0, x1, y1 in objects
        ])


def test_background_is_ignored():
    assert (draw_polygons(annotation(), IDS) == np.full((5, 8), 255)).all()


def test_polygon_is_filled_with_its_border():
    mask = draw_polygons(annotation(('car', 1, 2, 4, 3)), IDS)
    assert (mask == 13).sum() == 8 and (mask[2:4, 1:5] == 13).all()


def test_later_polygons_lie_on_top():
    mask = draw_polygons(
        annotation(('road', 0, 0, 7, 4), ('car', 0, 0, 1, 4),
                   ('sky', 0, 0, 7, 0)), IDS)
    assert mask[:, 0].tolist() == [255, 13, 13, 13, 13]


def test_group_counts_as_its_members():
    mask = draw_polygons(annotation(('cargroup', 0, 0, 7, 4)), IDS)
    assert (mask == 13).all()


def test_label_that_ends_in_group_keeps_its_name():
    assert single_label('polegroup', {'pole', 'polegroup'}) == 'polegroup'


@pytest.mark.parametrize('label', ['car', 'tmp'])
def test_deleted_polygon_is_left_out_whatever_its_label(label):
    entries = annotation((label, 0, 0, 7, 4))
    entries['objects'][0]['deleted'] = 1
    assert (draw_polygons(entries, IDS) == 255).all()


def test_label_that_is_not_drawn_leaves_what_is_below():
    entries = annotation(('car', 0, 0, 7, 4), ('license plate', 2, 2, 3, 3))
    mask = draw_polygons(entries, IDS, not_drawn=['license plate'])
    assert (mask == 13).all()


def test_polygon_of_one_corner_is_left_out():
    entries = annotation(('car', 0, 0, 7, 4))
    entries['objects'][0]['polygon'] = [[1, 1]]
    assert (draw_polygons(entries, IDS) == 255).all()


def test_unknown_label_is_rejected():
    with pytest.raises(ValueError, match="unknown label 'tram'.*'car'"):
        draw_polygons(annotation(('tram', 0, 0, 1, 1)), IDS)


@pytest.mark.parametrize('text', ['{', '{"objects": []}'])
def test_file_that_is_no_annotation_is_named(tmp_path, text):
    path = tmp_path / 'a_polygons.json'
    path.write_text(text)
    with pytest.raises(ValueError, match='a_polygons.json'):
        read_polygons(str(path))


def test_mask_is_written_without_loss(tmp_path):
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    write_mask(str(tmp_path / 'a.png'), mask)
    assert (np.asarray(Image.open(tmp_path / 'a.png')) == mask).all()
    assert os.listdir(tmp_path) == ['a.png']
