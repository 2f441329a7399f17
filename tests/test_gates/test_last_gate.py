# SPDX-License-Identifier: Apache-2.0
"""The newest expert for every image."""
from __future__ import annotations

import pytest

from mmseg_mile.gates.simple_gates import LastGate


def test_every_image_goes_to_the_task_learned_last():
    gate = LastGate()
    for task in ('day', 'night'):
        gate.fit(task, None)
        routing = gate.route(None, [None, 'day'])
        assert {routing.top_expert(i) for i in range(2)} == {task}


def test_loaded_tasks_count_like_learned_ones():
    gate = LastGate()
    gate.load_state('day', gate.state('day'))
    gate.load_state('night', {})
    assert gate.route(None, [None]).top_expert(0) == 'night'


def test_removal_of_the_last_brings_back_the_one_before():
    gate = LastGate()
    gate.fit('day', None)
    gate.fit('night', None)
    gate.remove('night')
    assert gate.route(None, [None]).top_expert(0) == 'day'


def test_gate_without_a_task_is_refused():
    with pytest.raises(ValueError, match='learned no task yet'):
        LastGate().route(None, [None])
