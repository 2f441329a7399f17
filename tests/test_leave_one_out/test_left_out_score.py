# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from mmseg_mile.evaluation import RoutedImage
from mmseg_mile.evaluation.left_out_score import (LeftOutImage, LeftOutScore,
                                                  read_left_out_images,
                                                  write_left_out_images)

SCORE = LeftOutScore('fog', ('fog', 'rain'), 'nearest', 10, 8, 3, 41.5,
                     dict(road=83.0, sky=math.nan))
IMAGE = LeftOutImage(
    1, 'fused', ('fog', ), False,
    RoutedImage('city', 'fog', 'ACDCDataset', 'img/a\u2028b.png', 'rain',
                dict(rain=0.75, city=0.25), dict(rain=1.0, city=2.0), True,
                40.0, 50.0), 1.25)


def through_json(document):
    return json.loads(json.dumps(document, allow_nan=False))


def test_score_survives_json():
    document = through_json(SCORE.to_document())
    assert document['class_iou'] == dict(road=83.0, sky=None)
    again = LeftOutScore.from_document(document)
    assert again.removed == ('fog', 'rain')
    assert math.isnan(again.class_iou['sky'])
    assert again.to_document() == document


def test_score_of_no_answer_has_no_miou():
    score = LeftOutScore('fog', ('fog', ), 'unfamiliar_abstain', 10, 0, 10,
                         math.nan, dict(road=math.nan))
    document = through_json(score.to_document())
    assert document['miou'] is None
    assert math.isnan(LeftOutScore.from_document(document).miou)


@pytest.mark.parametrize('change, message', [
    (dict(extra=1), 'unknown are'),
    (dict(miou=101), 'miou must lie in 0 to 100'),
    (dict(miou=True), 'miou must be a number or null'),
    (dict(class_iou=dict(road='x')), 'class_iou.road must be a number'),
    (dict(answered=11), 'answered is 11 of 10 images'),
    (dict(flagged=-1), 'flagged is -1 of 10 images'),
    (dict(removed='fog'), 'removed must be of type list'),
])
def test_broken_score_is_refused(change, message):
    document = dict(through_json(SCORE.to_document()), **change)
    with pytest.raises(ValueError, match=message):
        LeftOutScore.from_document(document)


def test_line_says_image_target_removed_experts_method_and_weights():
    document = IMAGE.to_document()
    wanted = dict(
        seed=1,
        task='fog',
        file='img/a\u2028b.png',
        removed=['fog'],
        method='fused',
        mixture=dict(rain=0.75, city=0.25),
        abstained=False,
        ood_score=1.25)
    assert {k: document[k] for k in wanted} == wanted


def test_log_survives_the_disk(tmp_path):
    path = tmp_path / 'images.jsonl'
    write_left_out_images(path, [IMAGE, IMAGE])
    assert read_left_out_images(path) == [IMAGE, IMAGE]


@pytest.mark.parametrize('value', [None, math.nan, math.inf])
def test_unfamiliarity_that_is_no_number_is_not_known(value):
    line = replace(IMAGE, ood_score=value)
    assert through_json(line.to_document())['ood_score'] is None
    assert LeftOutImage.from_document(line.to_document()) == line


def test_broken_line_is_named(tmp_path):
    path = tmp_path / 'images.jsonl'
    write_left_out_images(path, [IMAGE])
    for broken in ('{', '{"seed": 1}', '[]'):
        path.write_text(path.read_text().split('\n')[0] + f'\n{broken}\n')
        with pytest.raises(ValueError, match='images.jsonl, line 2 is no'):
            read_left_out_images(path)
