# SPDX-License-Identifier: Apache-2.0
"""Every expert on every other task, each pair once."""
from __future__ import annotations

import numpy as np
import pytest

from mmseg_mile.engine.task_evaluator import CrossScores

DIGESTS = dict(day='a', night='b', fog='c')


class Forced:
    """Ten times the task's place plus the expert's, in the alphabet."""

    def __init__(self, stop=None):
        self.pairs, self.stop = [], stop

    def __call__(self, task, expert):
        if len(self.pairs) == self.stop:
            raise KeyboardInterrupt
        self.pairs.append((task, expert))
        return 10. * 'dnf'.index(task[0]) + 'dnf'.index(expert[0])


def fill(path, tasks=('day', 'night', 'fog'), digests=None, stop=None):
    forced = Forced(stop)
    scores = CrossScores(path, tasks, digests or DIGESTS)
    return scores.fill(forced, [90.] * len(tasks)), forced.pairs


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'cross.json'


def test_own_expert_is_not_evaluated(path):
    matrix, pairs = fill(path)
    np.testing.assert_array_equal(matrix,
                                  [[90, 1, 2], [10, 90, 12], [20, 21, 90]])
    assert len(pairs) == 6


def test_interrupted_pass_goes_on_with_the_next_pair(path):
    with pytest.raises(KeyboardInterrupt):
        fill(path, stop=2)
    matrix, pairs = fill(path)
    assert pairs == [('night', 'day'), ('night', 'fog'), ('fog', 'day'),
                     ('fog', 'night')]
    assert matrix[0].tolist() == [90, 1, 2]


def test_complete_pass_is_not_repeated(path):
    first, _ = fill(path)
    again, pairs = fill(path)
    assert pairs == []
    np.testing.assert_array_equal(again, first)


def test_longer_stream_adds_the_pairs_of_its_new_task(path):
    fill(path, ('day', 'night'))
    assert set(fill(path)[1]) == {('day', 'fog'), ('night', 'fog'),
                                  ('fog', 'day'), ('fog', 'night')}


def test_pairs_of_an_expert_that_changed_are_evaluated_again(path):
    fill(path)
    _, pairs = fill(path, digests=dict(DIGESTS, day='z'))
    assert set(pairs) == {('day', 'night'), ('day', 'fog'), ('night', 'day'),
                          ('fog', 'day')}
