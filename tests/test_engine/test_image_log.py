# SPDX-License-Identifier: Apache-2.0
"""Lines of the routing log from predicted samples."""
from __future__ import annotations

import numpy as np
import pytest

from mmseg.structures import SegDataSample
from mmseg_mile.engine.task_evaluator import ImageLog
from mmseg_mile.evaluation import (DomainIoU, read_routing_log,
                                   write_routing_log)
from mmseg_mile.structures import Task

TASK = Task('day', ('road', 'car'), ((0, 0, 0), (9, 9, 9)),
            dict(type='Train'), dict(type='Val'))  # yapf: disable


def counts(prediction, truth=(0, 1)):
    score = DomainIoU(TASK.classes)
    score.update(np.array([prediction]), TASK.classes, np.array([truth]))
    return score


def test_line_says_where_the_image_was_sent_and_what_it_cost(tmp_path):
    sample = SegDataSample(
        metainfo=dict(
            img_path=str(tmp_path / 'city' / 'a.png'),
            expert='night',
            mixture={'night': 1.0},
            distances={
                'day': 2.0,
                'night': 1.23456789
            },
            ood=True))
    line = ImageLog(TASK,
                    'night', str(tmp_path)).entry(sample, counts((0, 0)),
                                                  counts((0, 1)))
    assert (line.after, line.task, line.dataset, line.file) == (
        'night', 'day', 'Val', 'city/a.png')  # yapf: disable
    assert (line.expert, line.ood) == ('night', True)
    assert line.distances == {'day': 2.0, 'night': 1.23457}
    # road: 1 of 2 pixels, car: none
    assert (line.miou, line.oracle_miou, line.routing_cost) == (25, 100, 75)


def test_method_without_experts_leaves_routing_empty(tmp_path):
    line = ImageLog(TASK, 'day', str(tmp_path)).entry(
        SegDataSample(metainfo=dict(img_path=str(tmp_path / 'a.png'))),
        counts((0, 1)), None)
    assert line.expert is line.ood is line.oracle_miou is None
    assert line.mixture == line.distances == {}


def test_image_outside_the_data_root_keeps_its_path(tmp_path):
    path = str(tmp_path / 'elsewhere.png')
    line = ImageLog(TASK, 'day', str(tmp_path / 'data')).entry(
        SegDataSample(metainfo=dict(img_path=path)), counts((0, 1)), None)
    assert line.file == path


def test_image_without_truth_has_no_score(tmp_path):
    line = ImageLog(TASK, 'day',
                    str(tmp_path)).entry(SegDataSample(),
                                         counts((0, 1), truth=(255, 255)),
                                         None)
    assert line.miou is None and line.file == ''


@pytest.mark.parametrize('name, logged', [
    ('stra\u00dfe.png', 'stra\u00dfe.png'),
    ('nacht\udcff.png', r'nacht\udcff.png'),
])
def test_any_file_name_can_be_logged(tmp_path, name, logged):
    sample = SegDataSample(metainfo=dict(img_path=str(tmp_path / name)))
    line = ImageLog(TASK, 'day', str(tmp_path)).entry(sample, counts((0, 1)),
                                                      None)
    write_routing_log(tmp_path / 'log.jsonl', [line])
    assert [x.file
            for x in read_routing_log(tmp_path / 'log.jsonl')] == [logged]
