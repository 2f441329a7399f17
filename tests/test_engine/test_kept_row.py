# SPDX-License-Identifier: Apache-2.0
"""Scores of a row in progress."""
from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mmseg_mile.engine.task_evaluator import RowCache, TaskScore
from mmseg_mile.evaluation import DomainIoU, RoutedImage
from mmseg_mile.structures import Task

TASK = Task('day', ('road', 'car'), ((0, 0, 0), ) * 2, {}, {})


def never(task):
    raise AssertionError(f'{task.name} was evaluated again')


def evaluate(task):
    counts = DomainIoU(task.classes)
    counts.update(np.array([[0, 1]]), ('road', 'bus'), np.array([[0, 1]]))
    line = RoutedImage(
        'night', 'day', 'CamVidDataset', 'a.png', distances=dict(night=1 / 3))
    return TaskScore(counts, None, Counter(night=1), images=[line])


@pytest.fixture
def row(tmp_path):
    row = RowCache(tmp_path / 'row', 'night')
    row.score(TASK, evaluate)
    return row


def test_kept_score_is_not_evaluated_again(row):
    score = RowCache(row.folder, 'night').score(TASK, never)
    assert score.to_document() == evaluate(TASK).to_document()
    assert score.routed.miou() == 50
    assert score.images == evaluate(TASK).images


def test_score_of_another_row_is_not_taken(row):
    with pytest.raises(AssertionError, match='day was evaluated again'):
        RowCache(row.folder, 'fog').score(TASK, never)


def test_nothing_is_left_of_a_complete_row(row):
    row.discard()
    assert not row.folder.exists()
    row.discard()
