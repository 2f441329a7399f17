# SPDX-License-Identifier: Apache-2.0
"""One expert for every image."""
from __future__ import annotations

import pytest

from mmseg_mile.gates.simple_gates import FixedGate


def gate_for(expert: str) -> FixedGate:
    """Fit the gate on two tasks."""
    gate = FixedGate(expert)
    gate.fit('day', None)
    gate.fit('night', None)
    return gate


def test_every_image_goes_to_the_expert():
    routing = gate_for('night').route(None, ['day', None])
    assert routing.weights.tolist() == [[0, 1], [0, 1]]


def test_unknown_expert_is_refused():
    with pytest.raises(ValueError, match="'fog', which is no expert.*'day'"):
        gate_for('fog').route(None, [None])


def test_gate_without_a_task_is_refused():
    with pytest.raises(ValueError, match='learned no task yet'):
        FixedGate('day').route(None, [None])
