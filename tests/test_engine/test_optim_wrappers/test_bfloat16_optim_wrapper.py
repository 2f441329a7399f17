# SPDX-License-Identifier: Apache-2.0
"""Mixed precision on a CPU."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from mmseg.registry import OPTIM_WRAPPERS
from mmseg_mile.engine.task_training import Bfloat16OptimWrapper


@pytest.fixture
def layer() -> nn.Linear:
    """A model."""
    return nn.Linear(4, 2)


@pytest.fixture
def wrapper(layer: nn.Linear) -> Bfloat16OptimWrapper:
    """Its optimizer, built as a config would."""
    return OPTIM_WRAPPERS.build(
        dict(
            type='Bfloat16OptimWrapper',
            accumulative_counts=2,
            optimizer=torch.optim.SGD(layer.parameters(), lr=0.5)))


def test_forward_is_bfloat16(layer, wrapper):
    with wrapper.optim_context(layer):
        assert layer(torch.randn(3, 4)).dtype == torch.bfloat16
    assert layer(torch.randn(3, 4)).dtype == torch.float32


def test_parameters_and_gradients_stay_float32(layer, wrapper):
    with wrapper.optim_context(layer):
        loss = layer(torch.randn(3, 4)).float().square().mean()
    wrapper.backward(loss)
    assert layer.weight.grad.dtype == layer.weight.dtype == torch.float32


def test_gradients_are_accumulated_before_a_step(layer, wrapper):
    before, changed = layer.weight.detach().clone(), []
    for _ in range(2):
        with wrapper.optim_context(layer):
            loss = layer(torch.ones(3, 4)).float().square().mean()
        wrapper.update_params(loss)
        changed.append(not torch.equal(layer.weight, before))
    assert changed == [False, True]
