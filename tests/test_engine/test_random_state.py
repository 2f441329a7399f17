# SPDX-License-Identifier: Apache-2.0
"""Random numbers that are seeded for a while, kept and restored."""
from __future__ import annotations

import random

import numpy as np
import torch

from mmseg_mile.engine.snapshot import (random_state, sample_seed, seeded,
                                        set_random_state)


def draw():
    return random.random(), np.random.normal(), torch.rand(3).tolist()


def test_draws_inside_depend_on_the_seed_alone():
    with seeded(5):
        first = draw()
    draw()
    with seeded(5):
        again = draw()
    with seeded(6):
        other = draw()
    assert first == again != other


def test_draws_outside_go_on_as_if_nothing_had_happened():
    state = random_state()
    undisturbed = draw()
    set_random_state(state)
    with seeded(5):
        draw()
    assert draw() == undisturbed


def test_state_includes_a_normal_value_that_numpy_holds_back():
    # numpy's old generator draws normal values in pairs
    np.random.normal()
    state = random_state()
    following = draw()
    set_random_state(state)
    assert draw() == following


def test_seed_depends_on_every_part():
    seeds = {
        sample_seed(*parts)
        for parts in ((0, 'day', 1), (0, 'day', 2), (0, 'night', 1), (1, 'day',
                                                                      1))
    }
    assert len(seeds) == 4 and max(seeds) < 2**32
