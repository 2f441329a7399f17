# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest

from mmseg_mile.evaluation.continual_scores import net_score


def test_worked_example() -> None:
    # a = 50, p = 4, m = 1: 20 log10(2500 / 2) = 20 * 3.09691
    assert net_score(50, 4e6, 1e9) == pytest.approx(61.9382, abs=1e-4)


def test_ten_times_the_accuracy_adds_forty() -> None:
    assert net_score(50, 1e6, 1e9) - net_score(5, 1e6,
                                               1e9) == pytest.approx(40)


@pytest.mark.parametrize('params, macs', [(1e8, 1e9), (1e6, 1e11)])
def test_a_hundred_times_size_or_work_costs_twenty(params: float,
                                                   macs: float) -> None:
    lost = net_score(50, 1e6, 1e9) - net_score(50, params, macs)
    assert lost == pytest.approx(20)


@pytest.mark.parametrize('values', [(math.nan, 1e6, 1e9), (0, 1e6, 1e9),
                                    (50, math.nan, 1e9), (50, 0, 1e9),
                                    (50, 1e6, None), (50, 1e6, 0)])
def test_unknown_or_empty_value_gives_no_score(values: tuple) -> None:
    assert math.isnan(net_score(*values))
