# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from mmseg_mile.evaluation.left_out_methods import (COMPARED, OOD_POLICIES,
                                                    TITLES, methods_of,
                                                    removals, tau_method,
                                                    tau_of, title_of)


def test_methods_of_each_scope():
    assert methods_of('own') == [*COMPARED[1:], *OOD_POLICIES]
    assert methods_of('family') == methods_of('own')
    assert methods_of('none') == [
        'oracle', 'nearest', 'fused', 'fused_adapters', 'fused_outputs',
        *OOD_POLICIES
    ]


def test_swept_temperatures_are_for_experts_that_are_left_out():
    assert methods_of('own', [0.1])[-1] == 'fused_adapters_tau_0.1'
    assert methods_of('none', [0.1]) == methods_of('none')


def test_temperature_is_read_off_the_name():
    assert tau_of(tau_method(0.05)) == 0.05
    with pytest.raises(ValueError, match="'fused' names no temperature"):
        tau_of('fused')


def test_every_method_has_a_title():
    assert set(TITLES) == {*COMPARED, *OOD_POLICIES}
    assert title_of('fused_adapters_tau_0.05') == 'SemLA, tau 0.05'
    assert len({title_of(m) for m in TITLES}) == len(TITLES)


def test_removals_by_scope():
    assert removals('fog', ('fog', 'rain')) == dict(
        none=(), own=('fog', ), family=('fog', 'rain'))
