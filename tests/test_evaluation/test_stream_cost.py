# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from mmseg_mile.evaluation.results import StreamCost

TASKS = ['day', 'dusk']


def expert(task: str, **changes: Any) -> dict[str, Any]:
    sizes = dict(
        lora_params=4,
        head_params=3,
        norm_params=2,
        prototype_values=1,
        bytes=2048)
    return dict(sizes, task=task, **changes)


@pytest.fixture
def cost() -> StreamCost:
    cost = StreamCost.new(2)
    cost.base_params, cost.macs = 100, 10**12
    cost.set_experts([expert(task) for task in TASKS], TASKS)
    cost.set_task(0, 7.5, 2**40 + 1, 10**13 + 1)
    return cost


def test_nothing_is_known_of_a_new_run() -> None:
    cost = StreamCost.new(2)

    assert cost.to_document() == dict(
        base_params=None,
        experts=[],
        train_seconds=[None, None],
        kept_params=[None, None],
        kept_bytes=[None, None],
        macs=None)


def test_task_is_learned_once_its_time_is_known(cost: StreamCost) -> None:
    assert cost.is_learned.tolist() == [True, False]


def test_task_without_known_size_is_learned_all_the_same() -> None:
    cost = StreamCost.new(1)
    cost.set_task(0, 0, math.nan, math.nan)

    assert cost.is_learned.tolist() == [True]


def test_document_comes_back_and_keeps_large_counts_whole(
        cost: StreamCost) -> None:
    document = json.loads(json.dumps(cost.to_document()))
    again = StreamCost.from_document(document, TASKS)

    assert again.to_document() == cost.to_document()
    assert document['kept_params'] == [2**40 + 1, None]
    assert document['kept_bytes'] == [10**13 + 1, None]
    assert (again.base_params, again.macs) == (100, 10**12)
    assert again.train_seconds[0] == 7.5


def test_sizes_of_experts_are_copied() -> None:
    cost, entry = StreamCost.new(2), expert('day')
    cost.set_experts([entry], TASKS)
    entry['bytes'] = 0

    assert cost.experts[0]['bytes'] == 2048


def test_added_tasks_are_unknown_and_old_ones_kept(cost: StreamCost) -> None:
    cost.extend(3)

    np.testing.assert_array_equal(cost.train_seconds,
                                  [7.5, math.nan, math.nan])
    np.testing.assert_array_equal(cost.kept_params,
                                  [2**40 + 1, math.nan, math.nan])
    assert len(cost.kept_bytes) == 3


def test_longer_stream_has_to_count_its_work_anew(cost: StreamCost) -> None:
    cost.extend(2)
    assert cost.macs == 10**12

    cost.extend(3)
    assert cost.macs is None


@pytest.mark.parametrize('values, field', [
    ((-1, 0, 0), 'train_seconds'),
    ((0, -1, 0), 'kept_params'),
    ((0, 0, -1), 'kept_bytes'),
    ((math.nan, 0, -2), 'kept_bytes'),
])
def test_negative_value_is_refused(values: tuple, field: str) -> None:
    with pytest.raises(ValueError, match=rf'cost.{field}\[1\] must lie in 0'):
        StreamCost.new(2).set_task(1, *values)


@pytest.mark.parametrize('entry, message', [
    (expert('snow'), r'cost.experts\[0\].task must be one of .*snow'),
    (expert('day', lora_params=-1), r'cost.experts\[0\].lora_params'),
    (expert('day', colour=1), r'cost.experts\[0\] must have .*colour'),
    (dict(task='day'), r'cost.experts\[0\] must have .*lora_params'),
])
def test_wrong_expert_is_named(entry: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StreamCost.new(2).set_experts([entry], TASKS)


@pytest.mark.parametrize('field, value, message', [
    ('macs', 1.5, 'cost.macs must be of type int'),
    ('macs', True, 'cost.macs must be of type int'),
    ('base_params', '100', 'cost.base_params must be of type int'),
    ('experts', None, 'cost.experts must be of type list'),
    ('kept_params', [1], 'cost.kept_params must be a list of 2'),
    ('kept_bytes', [1, 'x'], r'cost.kept_bytes\[1\] must be a number'),
    ('train_seconds', [-1, 1], r'cost.train_seconds\[0\] must lie in 0'),
    ('speed', 1, 'cost must have .*speed'),
])
def test_wrong_field_of_a_document_is_named(cost: StreamCost, field: str,
                                            value: Any, message: str) -> None:
    document = dict(cost.to_document(), **{field: value})

    with pytest.raises(ValueError, match=message):
        StreamCost.from_document(document, TASKS)


@pytest.mark.parametrize('document', [None, [], {}])
def test_document_that_is_none_is_refused(document: Any) -> None:
    with pytest.raises(ValueError, match='cost must'):
        StreamCost.from_document(document, TASKS)
