# SPDX-License-Identifier: Apache-2.0
"""Every expected number can be worked out in the head."""
import math
from typing import Any, Callable

import numpy as np
import pytest

from mmseg_mile.evaluation import (average_miou, backward_transfer, forgetting,
                                   forward_transfer, harmonic_mean_miou,
                                   mismatch_drop, oracle_gap, plasticity,
                                   stability)
from mmseg_mile.evaluation.continual_scores import (delta_m, growth_per_task,
                                                    net_score, spread)

NAN = math.nan
# Task 0 falls from 60 over 50 to 40, task 1 gains from 50 to 55.
THREE = [[60, 30, 10], [50, 50, 20], [40, 55, 70]]
SCORES = [
    average_miou, harmonic_mean_miou, backward_transfer, forward_transfer,
    forgetting, stability, plasticity
]
COMPARING = [backward_transfer, forward_transfer, forgetting, stability]


@pytest.mark.parametrize('score, expected', [
    (average_miou, (40 + 55 + 70) / 3),
    (harmonic_mean_miou, 3 / (1 / 40 + 1 / 55 + 1 / 70)),
    (backward_transfer, ((40 - 60) + (55 - 50)) / 2),
    (forward_transfer, (30 + 20) / 2),
    (forgetting, ((60 - 40) + (50 - 55)) / 2),
    (stability, (40 / 60 + 55 / 50) / 2),
    (plasticity, (60 + 50 + 70) / 3),
])
def test_three_tasks_by_hand(score: Callable[[Any], float],
                             expected: float) -> None:
    assert score(THREE) == pytest.approx(expected)


def test_gain_is_negative_forgetting() -> None:
    assert forgetting([[60, NAN], [65, 50]]) == -5


def test_forgetting_counts_from_the_best_row_in_between() -> None:
    matrix = [[60, NAN, NAN], [64, 50, NAN], [62, 50, 70]]

    assert forgetting(matrix) == pytest.approx((64 - 62 + 0) / 2)


def test_forgetting_leaves_out_rows_before_the_task_was_learned() -> None:
    # Zero-shot, task 1 once scored 90; that was not knowledge of task 1.
    matrix = [[60, 90, NAN], [60, 50, NAN], [60, 50, 70]]

    assert forgetting(matrix) == 0


def test_forgetting_passes_over_a_row_that_was_not_evaluated() -> None:
    matrix = [[60, NAN, NAN], [NAN, 50, NAN], [58, 50, 70]]

    assert forgetting(matrix) == 1


def test_forward_transfer_subtracts_the_reference() -> None:
    assert forward_transfer([[60, 40], [50, 70]], reference=[5, 10]) == 30


@pytest.mark.parametrize('score', [
    average_miou, harmonic_mean_miou, backward_transfer, forgetting, stability
])
def test_missing_final_score_makes_the_score_nan(
        score: Callable[[Any], float]) -> None:
    assert math.isnan(score([[60, 0, 0], [NAN, 50, 0], [NAN, 0, 70]]))


def test_harmonic_mean_with_a_task_at_zero_is_zero() -> None:
    assert harmonic_mean_miou([[60, NAN], [0, 60]]) == 0


def test_stability_is_nan_where_nothing_was_learned() -> None:
    assert math.isnan(stability([[0, NAN], [10, 60]]))


@pytest.mark.parametrize('score', COMPARING)
def test_one_task_has_nothing_to_compare(
        score: Callable[[Any], float]) -> None:
    assert math.isnan(score([[60]]))


def test_oracle_gap_by_hand() -> None:
    routed = [[60, NAN], [56, 69]]
    oracle = [[60, NAN], [58, 70]]

    assert oracle_gap(routed, oracle) == 1.5


def test_oracle_gap_refuses_two_sizes() -> None:
    with pytest.raises(ValueError, match='one shape'):
        oracle_gap([[60]], [[60, 0], [50, 70]])


def test_mismatch_drop_by_hand() -> None:
    # Task 0 loses 20, task 1 loses 15; the diagonal is not used.
    assert mismatch_drop([60, 70], [[99, 40], [55, 99]]) == 17.5


def test_mismatch_drop_averages_the_wrong_experts() -> None:
    forced = [[NAN, 40, 20], [50, NAN, 30], [10, 10, NAN]]

    # 60 - 30, 60 - 40, 60 - 10
    assert mismatch_drop([60, 60, 60], forced) == pytest.approx(100 / 3)


def test_mismatch_drop_needs_two_experts() -> None:
    assert math.isnan(mismatch_drop([60], [[60]]))


def test_mismatch_drop_refuses_a_row_of_another_length() -> None:
    with pytest.raises(ValueError, match='oracle_row'):
        mismatch_drop([60, 70, 80], [[60, 40], [55, 70]])


@pytest.mark.parametrize('score', SCORES)
@pytest.mark.parametrize('shape', [(2, 3), (2, ), (0, 0)])
def test_matrix_must_be_square(score: Callable[[Any], float],
                               shape: tuple) -> None:
    with pytest.raises(ValueError, match='must be square'):
        score(np.ones(shape))


@pytest.mark.parametrize('score', SCORES)
def test_input_is_not_edited(score: Callable[[Any], float]) -> None:
    matrix = np.array([[60, NAN], [0, 70.]])
    before = matrix.copy()

    score(matrix)

    np.testing.assert_array_equal(matrix, before)


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('score', SCORES)
def test_unevaluated_matrix_warns_of_nothing(
        score: Callable[[Any], float]) -> None:
    assert math.isnan(score(np.full((3, 3), NAN)))


def test_spread_divides_by_one_less_than_the_seeds() -> None:
    # deviations -2 and 2: sqrt((4 + 4) / 1)
    assert spread([50, 54]) == (52, pytest.approx(math.sqrt(8)), 2)


@pytest.mark.parametrize('seeds', [[50], [50, NAN, 54]])
def test_one_seed_or_an_unknown_one_has_no_deviation(seeds: list) -> None:
    mean, deviation, _ = spread(seeds)
    assert math.isnan(deviation)
    assert math.isnan(mean) == (len(seeds) > 1)


@pytest.mark.parametrize(
    'scores, expected',
    [
        ([45, 70], -5),  # (-5 / 50 + 0 / 70) / 2
        ([45, 77], 0),  # -10 % and +10 %
        ([50, 70], 0),
    ])
def test_delta_m_weighs_changes_by_the_reference(scores: list,
                                                 expected: float) -> None:
    assert delta_m(scores, [50, 70]) == pytest.approx(expected)


@pytest.mark.parametrize('scores, reference', [([NAN, 70], [50, 70]),
                                               ([50, 70], [NAN, 70]),
                                               ([50, 70], [0, 70])])
def test_delta_m_needs_every_task(scores: list, reference: list) -> None:
    assert math.isnan(delta_m(scores, reference))


def test_delta_m_of_other_tasks_is_refused() -> None:
    with pytest.raises(ValueError, match='one value per task'):
        delta_m([50], [50, 70])


@pytest.mark.parametrize('kept, expected', [([100, 110, 124], 12),
                                            ([100, 100], 0), ([100], NAN),
                                            ([100, NAN], NAN)])
def test_growth_leaves_the_first_task_out(kept: list, expected: float) -> None:
    assert growth_per_task(kept) == pytest.approx(expected, nan_ok=True)


def test_net_score_by_hand() -> None:
    # a = 50, p = 4, m = 1: 20 log10(2500 / 2) = 20 * 3.09691
    assert net_score(50, 4e6, 1e9) == pytest.approx(61.9382, abs=1e-4)
    # a hundred times the size or the work costs twenty
    lost = net_score(50, 1e6, 1e9) - net_score(50, 1e8, 1e9)
    assert lost == pytest.approx(20)


@pytest.mark.parametrize('values', [(NAN, 1e6, 1e9), (0, 1e6, 1e9),
                                    (50, NAN, 1e9), (50, 0, 1e9),
                                    (50, 1e6, None), (50, 1e6, 0)])
def test_unknown_or_empty_value_gives_no_net_score(values: tuple) -> None:
    assert math.isnan(net_score(*values))
