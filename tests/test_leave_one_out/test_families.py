# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from mmseg_mile.structures import Task, families


def task(name, kind='ACDCDataset', root='data/acdc', family=None, **fields):
    val = dict(dict(type=kind, data_root=root), **fields)
    return Task(name, ('road', ), ((0, 0, 0), ), {}, val, family=family)


def test_one_class_below_one_root_is_a_family():
    found = families([task('fog'), task('city', 'CityDataset'), task('rain')])
    assert found == dict(
        fog=('fog', 'rain'), city=('city', ), rain=('fog', 'rain'))


@pytest.mark.parametrize('other', [
    task('other', root='data/more'),
    task('other', kind='SnowDataset'),
    task('other', family='fog'),
    task('other', family='ACDCDataset')
])
def test_another_class_root_or_named_family_is_another(other):
    assert families([task('fog'), other])['fog'] == ('fog', )


def test_named_family_joins_what_lies_apart():
    tasks = [
        task('fog', family='weather'),
        task('rain', 'RainDataset', 'data/rain', 'weather')
    ]
    assert families(tasks)['rain'] == ('fog', 'rain')


def test_dataset_inside_a_wrapper_counts():
    inner = dict(type='ACDCDataset', data_root='data/acdc')
    wrapped = task('rain', 'RepeatDataset', times=2, dataset=inner)
    assert families([task('fog'), wrapped])['fog'] == ('fog', 'rain')


def test_joined_datasets_are_what_they_join():
    parts = [dict(type='A', data_root='a'), dict(type='B', data_root='b')]
    one = task('one', 'ConcatDataset', datasets=parts)
    two = task('two', 'ConcatDataset', datasets=parts[::-1])
    three = task('three', 'ConcatDataset', datasets=parts[:1])
    assert families([one, two, three]) == dict(
        one=('one', 'two'), two=('one', 'two'), three=('three', ))
