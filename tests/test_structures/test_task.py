# SPDX-License-Identifier: Apache-2.0
"""Names and classes of a task."""
from __future__ import annotations

import dataclasses

import pytest

from mmseg_mile.structures import Task, check_task_name


def make_task(**fields: object) -> Task:
    """Make a task of two classes, with some fields changed."""
    values = dict(
        name='day',
        classes=('road', 'sky'),
        palette=((0, 0, 0), (1, 1, 1)),
        train_dataset={},
        val_dataset={})
    return Task(**{**values, **fields})


@pytest.mark.parametrize(
    'name', ['day', 'ACDC fog', 'cam-1.5', 'c++', '_x', '7', 'Zürich'])
def test_usable_name_is_returned(name):
    assert check_task_name(name) == name


@pytest.mark.parametrize('name', [
    '', ' ', ' day', 'day ', '.', '..', '.day', 'day.', '../day', 'a/b',
    'a\\b', 'a\nb', 'day\n', 'a:b', 'a\0b', '-day', None, 7
])
def test_name_that_is_no_folder_of_the_library_is_refused(name):
    with pytest.raises(ValueError, match='task name must start with'):
        check_task_name(name)


@pytest.mark.parametrize('name', ['x' * 201, '\u00fc' * 101])
def test_name_that_is_too_long_for_a_folder_is_refused(name):
    with pytest.raises(ValueError, match='must not exceed 200 bytes'):
        check_task_name(name)


@pytest.mark.parametrize('fields, message', [
    (dict(name='a/b'), 'Rename the task'),
    (dict(classes=()), "'day' has no classes"),
    (dict(classes=('road', 'sky', 'road')), 'classes of .*different names'),
    (dict(eval_classes=('a', 'a')), 'eval_classes of task .*different names'),
    (dict(sensors=('rgb', 'rgb')), "sensors of task 'day' .*different names"),
    (dict(protocol='modality'), "must be one of .*'sensor'.*'modality'"),
])  # yapf: disable
def test_field_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        make_task(**fields)


def test_task_is_evaluated_on_its_own_classes_or_on_those_named():
    assert make_task().eval_classes == ('road', 'sky')
    seen = make_task(eval_classes=('road', 'sky', 'car'))
    assert seen.eval_classes == ('road', 'sky', 'car')
    assert seen.classes == ('road', 'sky') and seen.num_classes == 2
    again = dataclasses.replace(seen, protocol='class')
    assert again.eval_classes == seen.eval_classes


def test_task_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_task().name = 'night'


def test_print_leaves_out_the_dataset_configs():
    assert 'secret' not in repr(make_task(train_dataset=dict(a='secret')))
