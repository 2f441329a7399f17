# SPDX-License-Identifier: Apache-2.0
"""What is refused, and what is said of it."""
from __future__ import annotations

import math

import pytest

from mmseg_mile.gates.base_gate import check_bounds, check_choice


def test_choice_names_what_is_allowed():
    check_choice('flag', 'own', ('own', 'shared'))
    with pytest.raises(
            ValueError,
            match=r"gate.flag must be one of \('own', 'shared'\), got 'mine'"):
        check_choice('flag', 'mine', ('own', 'shared'))


@pytest.mark.parametrize('value, bounds', [(1, (1, )), (9e9, (0, )),
                                           (1, (0, 1, True)), (0, (0, 1))])
def test_number_within_bounds_passes(value, bounds):
    check_bounds('tau', value, *bounds)


@pytest.mark.parametrize('value, bounds, allowed', [
    (0, (1, ), '>= 1'), (0, (0, math.inf, True), '> 0'),
    (math.inf, (0, ), '>= 0'), (math.nan, (0, 1), r'in \[0, 1]'),
    (0, (0, 1, True), r'in \(0, 1]'), (1.5, (0, 1, True), r'in \(0, 1]')
])  # yapf: disable
def test_number_out_of_bounds_is_named(value, bounds, allowed):
    with pytest.raises(
            ValueError, match=rf'gate.tau must be {allowed}, got {value}'):
        check_bounds('tau', value, *bounds)
