# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest

from mmseg_mile.evaluation.continual_scores import (delta_m, growth_per_task,
                                                    spread)


def test_spread_divides_by_one_less_than_the_seeds() -> None:
    found = spread([50, 54])
    # deviations -2 and 2: sqrt((4 + 4) / 1)
    assert found == (52, pytest.approx(math.sqrt(8)), 2)


def test_spread_of_one_seed_is_unknown() -> None:
    mean, deviation, count = spread([50])
    assert (mean, count) == (50, 1)
    assert math.isnan(deviation)


def test_seed_without_a_value_is_not_passed_over() -> None:
    mean, deviation, count = spread([50, math.nan, 54])
    assert math.isnan(mean) and math.isnan(deviation)
    assert count == 3


@pytest.mark.parametrize('values', [[], [[1, 2]]])
def test_spread_of_no_seeds_is_refused(values: list) -> None:
    with pytest.raises(ValueError, match='one or more seeds'):
        spread(values)


def test_delta_m_is_negative_for_a_loss() -> None:
    # (-5 / 50 + 0 / 70) / 2
    assert delta_m([45, 70], [50, 70]) == pytest.approx(-5)


def test_delta_m_weighs_changes_by_the_reference() -> None:
    # -5 / 50 = -10 %, 7 / 70 = +10 %
    assert delta_m([45, 77], [50, 70]) == pytest.approx(0)


def test_delta_m_of_the_reference_is_zero() -> None:
    assert delta_m([45, 77], [45, 77]) == 0


@pytest.mark.parametrize('scores, reference', [([math.nan, 70], [50, 70]),
                                               ([50, 70], [math.nan, 70]),
                                               ([50, 70], [0, 70])])
def test_delta_m_needs_every_task(scores: list, reference: list) -> None:
    assert math.isnan(delta_m(scores, reference))


def test_delta_m_of_other_tasks_is_refused() -> None:
    with pytest.raises(ValueError, match='one value per task'):
        delta_m([50], [50, 70])


def test_delta_m_leaves_its_input_alone() -> None:
    reference = np.array([0.0, 70.0])
    delta_m([50, 70], reference)
    assert reference.tolist() == [0, 70]


def test_growth_leaves_the_first_task_out() -> None:
    # (124 - 100) / 2
    assert growth_per_task([100, 110, 124]) == 12


def test_growth_of_one_model_is_zero() -> None:
    assert growth_per_task([100, 100]) == 0


@pytest.mark.parametrize('kept', [[100], [100, math.nan]])
def test_growth_needs_two_known_sizes(kept: list) -> None:
    assert math.isnan(growth_per_task(kept))
