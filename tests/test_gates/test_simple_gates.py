# SPDX-License-Identifier: Apache-2.0
"""Gates that ask no distance."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.gates.simple_gates import (FixedGate, MismatchedGate,
                                           NoExpertGate, OracleGate,
                                           RandomGate)

IMAGES = torch.arange(600.0).view(300, 2)


@pytest.mark.parametrize('gate', [
    FixedGate('a'),
    OracleGate(),
    RandomGate(),
    MismatchedGate(),
    NoExpertGate()
])
def test_gate_without_a_task_is_refused(gate):
    with pytest.raises(ValueError, match='learned no task yet'):
        gate.route(IMAGES[:1], ['a'])


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


@pytest.fixture
def oracle() -> OracleGate:
    """A gate that knows two tasks."""
    gate = OracleGate()
    gate.fit('day', None)
    gate.fit('night', None)
    return gate


def test_image_goes_to_its_true_task(oracle):
    routing = oracle.route(None, ['night', 'day', 'night'])
    assert routing.weights.tolist() == [[0, 1], [1, 0], [0, 1]]


def test_distances_are_unknown_and_nothing_is_flagged(oracle):
    routing = oracle.route(None, ['night'])
    assert routing.distances.isnan().all()
    assert not routing.ood.any()


def test_oracle_needs_the_task(oracle):
    with pytest.raises(ValueError, match="set metainfo 'task' on its data"):
        oracle.route(None, ['day', None])


def test_task_without_an_expert_is_refused(oracle):
    with pytest.raises(ValueError, match="OracleGate chose 'fog'.*'night'"):
        oracle.route(None, ['fog'])


def test_no_embedding_is_needed():
    assert not OracleGate.needs_embeddings


def test_task_to_come_gets_the_newest_expert_if_allowed():
    gate = OracleGate(fall_back=True)
    gate.fit('day', None)
    gate.fit('night', None)
    assert gate.route(None, ['fog', 'day']).weights.tolist() == [[0, 1],
                                                                 [1, 0]]


def draws(seed: int, images: torch.Tensor = IMAGES) -> torch.Tensor:
    """Route images among three experts."""
    gate = RandomGate(seed)
    for task in 'abc':
        gate.fit(task, None)
    return gate.route(images, [None] * len(images)).weights.argmax(1)


def test_same_seed_draws_the_same_whatever_else_is_drawn():
    first = draws(3)
    torch.manual_seed(17)
    assert torch.equal(draws(3), first)


def test_draw_of_an_image_does_not_depend_on_the_others():
    assert torch.equal(draws(3, IMAGES[100:150]), draws(3)[100:150])


def test_other_seed_draws_otherwise():
    assert not torch.equal(draws(3), draws(4))


def test_experts_are_drawn_alike_often():
    # 100 each, standard deviation 8
    assert (draws(0).bincount(minlength=3) - 100).abs().max() < 40


def mismatched(tasks, experts='abc', seed=0, images=IMAGES):
    """Experts of the images."""
    gate = MismatchedGate(seed)
    for expert in experts:
        gate.fit(expert, None)
    routing = gate.route(images[:len(tasks)], tasks)
    return [routing.top_expert(i) for i in range(len(tasks))]


def test_no_image_gets_its_own_expert():
    tasks = ['a', 'b', 'c'] * 100
    assert all(e != task for e, task in zip(mismatched(tasks), tasks))


def test_of_two_experts_it_is_the_other_one():
    assert mismatched(['a', 'b', 'b'], 'ab') == ['b', 'a', 'a']


def test_other_experts_are_drawn_alike_often():
    drawn = mismatched(['a'] * 300)
    # 150 each, standard deviation 9
    assert abs(drawn.count('b') - 150) < 45 and 'a' not in drawn


def test_draw_depends_on_the_seed_and_the_image_alone():
    first = mismatched(['a'] * 300, seed=1)
    torch.manual_seed(17)
    assert mismatched(
        ['a'] * 50, seed=1, images=IMAGES[100:]) == first[100:150]
    assert mismatched(['a'] * 300, seed=2) != first


def test_only_expert_is_chosen_for_want_of_another():
    assert mismatched(['a', 'b'], 'a') == ['a', 'a']


def test_task_without_an_expert_may_get_any():
    assert set(mismatched(['fog'] * 300)) == {'a', 'b', 'c'}


def test_mismatched_gate_needs_the_task():
    with pytest.raises(ValueError, match="MismatchedGate needs .* 'task'"):
        mismatched([None])


def test_it_asks_for_the_true_task():
    assert MismatchedGate.needs_task_label


def test_image_has_no_expert_but_distances_and_a_flag():
    gate = NoExpertGate()
    around = torch.tensor([[0., 0], [0, 2]] * 5)
    gate.fit('a', around)
    gate.fit('b', around + torch.tensor([9., 0]))
    routing = gate.route(torch.tensor([[9., 1.], [99., 1.]]), [None, None])
    assert routing.mixture(0) == {} == routing.mixture(1)
    assert routing.distances.tolist() == [[9, 0], [99, 90]]
    assert routing.ood.tolist() == [False, True]
    # its decode head is used
    assert routing.top_expert(0) == 'b'
