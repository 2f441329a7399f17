# SPDX-License-Identifier: Apache-2.0
"""A wrong expert for every image."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.gates.simple_gates import MismatchedGate

IMAGES = torch.arange(600.0).view(300, 2)


def chosen(tasks, experts='abc', seed=0, images=IMAGES):
    """Experts of the images."""
    gate = MismatchedGate(seed)
    for expert in experts:
        gate.fit(expert, None)
    routing = gate.route(images[:len(tasks)], tasks)
    return [routing.top_expert(i) for i in range(len(tasks))]


def test_no_image_gets_its_own_expert():
    tasks = ['a', 'b', 'c'] * 100
    assert all(e != task for e, task in zip(chosen(tasks), tasks))


def test_of_two_experts_it_is_the_other_one():
    assert chosen(['a', 'b', 'b'], 'ab') == ['b', 'a', 'a']


def test_other_experts_are_drawn_alike_often():
    drawn = chosen(['a'] * 300)
    # 150 each, standard deviation 9
    assert abs(drawn.count('b') - 150) < 45 and 'a' not in drawn


def test_draw_depends_on_the_seed_and_the_image_alone():
    first = chosen(['a'] * 300, seed=1)
    torch.manual_seed(17)
    assert chosen(['a'] * 50, seed=1, images=IMAGES[100:]) == first[100:150]
    assert chosen(['a'] * 300, seed=2) != first


def test_only_expert_is_chosen_for_want_of_another():
    assert chosen(['a', 'b'], 'a') == ['a', 'a']


def test_task_without_an_expert_may_get_any():
    assert set(chosen(['fog'] * 300)) == {'a', 'b', 'c'}


def test_image_without_its_task_is_refused():
    with pytest.raises(ValueError, match="MismatchedGate needs .* 'task'"):
        chosen([None])


def test_gate_without_a_task_is_refused():
    with pytest.raises(ValueError, match='learned no task yet'):
        chosen(['a'], '')


def test_it_asks_for_the_true_task():
    assert MismatchedGate.needs_task_label
