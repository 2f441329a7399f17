# SPDX-License-Identifier: Apache-2.0
"""Rows, gate and setting in the results of a run."""
from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmseg_mile.engine.task_evaluator import (TaskScore, record_cost,
                                              record_row, setting_of)
from mmseg_mile.evaluation.domain_iou import DomainIoU
from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.evaluation.routing_log import RoutedImage
from mmseg_mile.structures import Task

TASKS = [
    Task(name, ('road', 'car'), ((0, 0, 0), (9, 9, 9)), {}, {})
    for name in ('day', 'night')
]


def score(hits, oracle_hits=None, **chosen):
    """A road of ten pixels, of which ``hits`` are right, and no car.

    Images that went to no expert are counted as ``nobody``.
    """

    def iou(right):
        return DomainIoU.from_confusion(TASKS[0].classes,
                                        [[right, 10 - right, 0], [0, 0, 0]])

    oracle = None if oracle_hits is None else iou(oracle_hits)
    images = [RoutedImage('night', 'day', 'Fake', f'{i}.png')
              for i in range(sum(chosen.values()))]  # yapf: disable
    chosen.pop('nobody', None)
    return TaskScore(
        iou(hits), oracle, Counter(chosen), digest='abc', images=images)


@pytest.fixture
def results():
    return StreamResults.new('s', 'm', 0, ['day', 'night'])


def test_row_is_entered_with_zero_shot_scores(results):
    digests = record_row(results, 0, TASKS,
                        [score(8, 9, day=4), score(3, day=4)])  # yapf: disable
    assert results.miou['routed'][0].tolist() == [80, 30]
    assert results.miou['oracle'][0, 0] == 90
    assert np.isnan(results.miou['oracle'][0, 1])
    assert results.gate_confusion[0, 0] == 4
    assert list(results.class_iou['routed']) == ['day']
    assert digests == {'day': 'abc', 'night': 'abc'}


def test_gate_counts_are_those_of_learned_tasks(results):
    record_row(results, 1, TASKS, [
        score(8, 8, day=3, night=1), score(8, 8, night=4)])  # yapf: disable
    assert results.gate_confusion.tolist() == [[3, 1], [0, 4]]
    assert results.gate_accuracy == 7 / 8


def test_image_that_got_no_expert_was_not_routed_right(results):
    record_row(results, 1, TASKS, [
        score(8, 8, day=3, nobody=1), score(8, 8, night=4)])  # yapf: disable
    assert results.gate_confusion.tolist() == [[3, 0], [0, 4]]
    assert results.gate_accuracy == 7 / 8


def test_prototype_distances_follow_the_order_of_the_tasks(results):
    gate = SimpleNamespace(
        expert_names=('night', 'day'),
        prototype_distances=lambda: torch.tensor([[0., 5.], [3., 0.]]))
    record_row(results, 1, TASKS, [score(8, 8), score(8, 8)], gate)
    assert results.prototype_distances.tolist() == [[0, 3], [5, 0]]


@pytest.mark.parametrize('rehearsal, old_images', [
    (None, 'none'),
    (dict(tasks='seen', images_per_task=8), 'buffer'),
    (dict(tasks='seen'), 'all'),
    (dict(tasks='all', images_per_task=8), 'all'),
])
def test_setting_says_which_old_images_are_seen(rehearsal, old_images):
    model = SimpleNamespace(needs_task_label=False, gate=None)
    assert setting_of(model, rehearsal) == dict(
        task_label_at_test=False, old_images=old_images)


@pytest.mark.parametrize('model', [
    SimpleNamespace(needs_task_label=True, gate=None),
    SimpleNamespace(
        needs_task_label=False, gate=SimpleNamespace(needs_task_label=True))
])
def test_setting_says_whether_the_label_is_given(model):
    assert setting_of(model, None)['task_label_at_test']


def test_cost_counts_kept_images_too(results, tmp_path):
    model = SimpleNamespace(
        backbone=torch.nn.Linear(3, 2),
        kept_cost=lambda experts: dict(params=10, bytes=40),
        expert_costs=lambda folder: [])
    record_cost(results, 1, 2.5, model, tmp_path, image_bytes=7)
    assert results.cost.base_params == 8
    assert results.cost.train_seconds[1] == 2.5
    assert (results.cost.kept_params[1], results.cost.kept_bytes[1]) == (10,
                                                                         47)
