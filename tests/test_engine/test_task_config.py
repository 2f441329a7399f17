# SPDX-License-Identifier: Apache-2.0
"""What the config of a task may say; test_bad_input.py has the rest."""
from __future__ import annotations

import pytest

from mmseg_mile.engine.task_data import (check_metainfo, check_task_configs,
                                         in_order)

DATASET = dict(type='BaseSegDataset')
META = dict(classes=('road', ), palette=[[1, 2, 3]])


def task(**fields):
    return dict(
        dict(name='day', train_dataset=DATASET, val_dataset=DATASET), **fields)


def test_plain_task_is_accepted():
    check_task_configs([task(), task(name='night', init_from='day')], 5)


@pytest.mark.parametrize('field', ['init_from', 'family'])
def test_name_that_is_no_text_is_refused(field):
    check_task_configs([task(**{field: 'day'})], 5)
    with pytest.raises(ValueError, match=f"{field} of task 'day' must be a n"):
        check_task_configs([task(**{field: ['day']})], 5)


def test_own_length_of_a_task_comes_before_that_of_the_stream():
    check_task_configs([task(max_iters=3)], None)
    with pytest.raises(ValueError, match="max_iters of task 'day' .* got 0"):
        check_task_configs([task(max_iters=0)], 5)


def test_keys_that_are_no_text_are_unknown_keys():
    with pytest.raises(ValueError, match=r"unknown keys \['7'\]"):
        check_task_configs([{**task(), 7: 1}], 5)


def test_third_task_is_compared_with_the_first():
    with pytest.raises(ValueError, match="called 'day': names must be unique"):
        check_task_configs([task(), task(name='night'), task()], 5)


@pytest.mark.parametrize('change, message', [
    (dict(classes=()), 'x declares no classes'),
    (dict(classes='road'), 'x: metainfo.classes must be a list of names'),
    (dict(classes=('', )), 'x: metainfo.classes must be a list of names'),
    (dict(palette=None), 'x: metainfo.palette must be a list with one'),
    (dict(palette=[[1, 2]]), 'x: metainfo.palette must be a list with one'),
])
def test_metainfo_that_is_not_what_it_seems_is_refused(change, message):
    check_metainfo(META, 'x')
    with pytest.raises(ValueError, match=message):
        check_metainfo({**META, **change}, 'x')


def test_tasks_can_be_learned_in_another_order():
    tasks = [dict(name='day'), dict(name='night')]
    assert in_order(tasks, ['night', 'day']) == tasks[::-1]
    assert in_order(tasks, None) is tasks


def test_task_that_is_listed_twice_is_still_there_twice():
    tasks = [task(), task(name='night'), task()]
    twice = in_order(tasks, ['day', 'day', 'night'])
    with pytest.raises(ValueError, match="two tasks .* called 'day'"):
        check_task_configs(twice, 5)


@pytest.mark.parametrize('tasks', [7, 'day', dict(name='day')])
def test_order_of_no_list_of_tasks_is_refused(tasks):
    with pytest.raises(ValueError, match='tasks must be a list of dicts'):
        in_order(tasks, ['day'])


@pytest.mark.parametrize('order',
                         [['day'], ['day', 'day'], ['day', 'night', 'snow'],
                          [], 'day', 3, [['day'], 'night']])
def test_order_must_name_every_task_once(order):
    with pytest.raises(ValueError, match='train_cfg.order must name every'):
        in_order([dict(name='day'), dict(name='night')], order)
