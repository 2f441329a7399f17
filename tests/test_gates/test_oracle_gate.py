# SPDX-License-Identifier: Apache-2.0
"""The true task as a gate."""
from __future__ import annotations

import pytest

from mmseg_mile.gates.simple_gates import OracleGate


@pytest.fixture
def gate() -> OracleGate:
    """A gate that knows two tasks."""
    gate = OracleGate()
    gate.fit('day', None)
    gate.fit('night', None)
    return gate


def test_image_goes_to_its_true_task(gate):
    routing = gate.route(None, ['night', 'day', 'night'])
    assert routing.weights.tolist() == [[0, 1], [1, 0], [0, 1]]


def test_distances_are_unknown_and_nothing_is_unfamiliar(gate):
    routing = gate.route(None, ['night'])
    assert routing.distances.isnan().all()
    assert not routing.ood.any()


def test_image_without_its_task_is_refused(gate):
    with pytest.raises(ValueError, match="set metainfo 'task' on its data"):
        gate.route(None, ['day', None])


def test_task_without_an_expert_is_refused(gate):
    with pytest.raises(ValueError, match="OracleGate chose 'fog'.*'night'"):
        gate.route(None, ['fog'])


def test_gate_without_a_task_is_refused():
    with pytest.raises(ValueError, match='learned no task yet'):
        OracleGate().route(None, ['day'])


def test_no_embedding_is_needed():
    assert not OracleGate.needs_embeddings


def test_task_to_come_gets_the_newest_expert_if_allowed():
    gate = OracleGate(fall_back=True)
    gate.fit('day', None)
    gate.fit('night', None)
    assert gate.route(None, ['fog', 'day']).weights.tolist() == [[0, 1],
                                                                 [1, 0]]
