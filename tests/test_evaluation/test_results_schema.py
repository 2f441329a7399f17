# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

# yapf: disable
from mmseg_mile.evaluation.results import (check_keys, check_setting,
                                           check_tasks, check_type,
                                           check_version, read_matrix,
                                           write_counts, write_numbers)

# yapf: enable


def test_missing_and_unknown_keys_are_listed() -> None:
    with pytest.raises(
            ValueError,
            match=r"gate must have .*missing are "
            r"\['confusion'\], unknown are \['speed'\]"):
        check_keys({
            'accuracy': 1,
            'speed': 2
        }, ('accuracy', 'confusion'), 'gate')


def test_bool_is_no_integer() -> None:
    with pytest.raises(ValueError, match='seed must be of type int'):
        check_type(True, int, 'seed')


@pytest.mark.parametrize('tasks', [[], ['a', 'a'], ['a', 1], 'day', None])
def test_tasks_must_be_different_names(tasks: object) -> None:
    with pytest.raises(ValueError, match='tasks must be a list'):
        check_tasks(tasks)


def test_matrix_reads_null_as_nan() -> None:
    np.testing.assert_array_equal(
        read_matrix([[1, None], [2.5, 3]], 2, 'm'), [[1, np.nan], [2.5, 3]])


def test_wrong_cell_is_named() -> None:
    with pytest.raises(ValueError, match=r'm\[1\]\[0\] must be a number'):
        read_matrix([[1, 2], ['x', 3]], 2, 'm')


@pytest.mark.parametrize('value', [10**400, float('inf'), -float('inf')])
def test_number_without_end_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r'm\[0\]\[0\] must be finite'):
        read_matrix([[value]], 1, 'm')


def test_results_of_the_first_schema_say_what_to_do() -> None:
    with pytest.raises(
            ValueError, match="'schema' must be 2, got 1.*another --work-dir"):
        check_version({'schema': 1})


@pytest.mark.parametrize('document', [None, [], {}, {'tasks': []}])
def test_other_json_is_no_results_file(document: object) -> None:
    with pytest.raises(ValueError, match='no results file of a stream'):
        check_version(document)


@pytest.mark.parametrize('images', ['none', 'buffer', 'all'])
def test_setting_is_a_label_and_old_images(images: str) -> None:
    setting = dict(task_label_at_test=True, old_images=images)

    assert check_setting(setting) == setting


@pytest.mark.parametrize('change, message', [
    (dict(task_label_at_test=1), 'setting.task_label_at_test must be of type'),
    (dict(old_images='some'), "setting.old_images must be one of .*'some'"),
    (dict(old_images=[]), 'setting.old_images must be one of'),
    (dict(colour=1), 'setting must have .*colour'),
])
def test_wrong_setting_is_named(change: dict, message: str) -> None:
    setting = dict(task_label_at_test=False, old_images='none')

    with pytest.raises(ValueError, match=message):
        check_setting(dict(setting, **change))


def test_numbers_are_cut_to_four_decimals() -> None:
    value = {'a': [1 / 3, np.float32(0.5), -0.00001, np.nan]}

    assert str(write_numbers(value)) == "{'a': [0.3333, 0.5, 0.0, None]}"


def test_integers_stay_whole() -> None:
    assert str(write_numbers([np.int64(3), 4, True])) == '[3, 4, True]'


def test_counts_are_written_whole() -> None:
    assert str(write_counts(np.array([[2.0, np.nan]]))) == '[[2, None]]'
