# SPDX-License-Identifier: Apache-2.0
"""What the config of a task may say; test_bad_input.py has the rest."""
from __future__ import annotations

import pytest

from mmseg_mile.engine.task_config import check_metainfo, check_task_configs

DATASET = dict(type='BaseSegDataset')
META = dict(classes=('road', ), palette=[[1, 2, 3]])


def task(**fields):
    return dict(
        dict(name='day', train_dataset=DATASET, val_dataset=DATASET), **fields)


def test_plain_task_is_accepted():
    check_task_configs([task(), task(name='night', init_from='day')], 5)


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
