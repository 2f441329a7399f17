# SPDX-License-Identifier: Apache-2.0
"""Running statistics of norm layers in several processes."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from mmseg_mile.engine import task_training as norm_statistics
from mmseg_mile.engine.task_training import average_statistics


class HalfFrozen(nn.Module):
    """One norm layer that trains, and two whose statistics do not move."""

    def __init__(self):
        super().__init__()
        self.owned = nn.BatchNorm2d(2)
        self.frozen = nn.BatchNorm2d(2)
        self.memoryless = nn.BatchNorm2d(2, track_running_stats=False)

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self


@pytest.fixture
def reduced(monkeypatch):
    """What is sent around, and how it is joined."""
    calls = []
    monkeypatch.setattr(norm_statistics, 'all_reduce_params',
                        lambda params, op: calls.append((list(params), op)))
    return calls


def test_statistics_that_were_learned_are_averaged(reduced):
    model = HalfFrozen()
    average_statistics(model)
    (tensors, how), = reduced
    assert how == 'mean'
    assert [id(t) for t in tensors
            ] == [id(model.owned.running_mean),
                  id(model.owned.running_var)]


def test_a_model_left_in_eval_mode_is_no_exception(reduced):
    average_statistics(HalfFrozen().eval())
    assert len(reduced[0][0]) == 2


def test_nothing_changes_in_a_single_process():
    model = nn.BatchNorm2d(2)
    model.running_mean.fill_(3)
    average_statistics(model)
    assert torch.equal(model.running_mean, torch.full((2, ), 3.))
