# SPDX-License-Identifier: Apache-2.0
"""Chance as a gate."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.gates.simple_gates import RandomGate

IMAGES = torch.arange(600.0).view(300, 2)


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


def test_gate_without_a_task_is_refused():
    with pytest.raises(ValueError, match='learned no task yet'):
        RandomGate().route(IMAGES, [None] * 300)
