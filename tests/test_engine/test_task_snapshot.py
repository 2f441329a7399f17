# SPDX-License-Identifier: Apache-2.0
"""What is kept of a task that is being trained."""
from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import OptimWrapper, PolyLR
from torch import nn

from mmseg_mile.engine.snapshot import TaskSnapshot


class Training:
    """A frozen layer, a trained one with momentum, and a norm layer."""

    def __init__(self, width=4):
        self.model = nn.Sequential(
            nn.Conv2d(3, width, 1), nn.BatchNorm2d(width),
            nn.Conv2d(width, 2, 3)).to(memory_format=torch.channels_last)
        self.model[0].requires_grad_(False)
        optimizer = torch.optim.AdamW(
            (p for p in self.model.parameters() if p.requires_grad), lr=0.1)
        wrapper = OptimWrapper(optimizer)
        scheduler = PolyLR(optimizer, eta_min=0, end=20, by_epoch=False)
        self.runner = SimpleNamespace(
            optim_wrapper=wrapper, param_schedulers=[scheduler])

    def step(self, count=1):
        for _ in range(count):
            loss = self.model(torch.rand(2, 3, 8, 8)).square().mean()
            self.runner.optim_wrapper.update_params(loss)
            self.runner.param_schedulers[0].step()


@pytest.fixture
def snapshot(tmp_path):
    return TaskSnapshot(tmp_path / '00_day')


@pytest.fixture
def training(snapshot):
    """After three steps, which are kept."""
    training = Training()
    training.step(3)
    snapshot.save(training.runner, training.model, 3, 1.5)
    return training


@pytest.fixture
def resumed(training, snapshot):
    """Another process, with the same frozen layer."""
    resumed = Training()
    resumed.model[0].load_state_dict(training.model[0].state_dict())
    known = snapshot.restore(resumed.runner, resumed.model)
    return resumed, known


def test_position_and_time_come_back(resumed):
    assert (resumed[1]['iteration'], resumed[1]['seconds']) == (3, 1.5)


def test_training_goes_on_bit_by_bit(training, resumed):
    from mmseg_mile.engine.snapshot import set_random_state
    for each in (training, resumed[0]):
        set_random_state(resumed[1]['random'])
        each.step(4)
    mine, theirs = resumed[0].model.state_dict(), training.model.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    rates = [
        t.runner.optim_wrapper.optimizer.param_groups[0]['lr']
        for t in (training, resumed[0])
    ]
    assert rates[0] == rates[1] < 0.1


def test_optimizer_state_has_the_layout_of_its_parameter(resumed):
    optimizer = resumed[0].runner.optim_wrapper.optimizer
    weight = resumed[0].model[2].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert optimizer.state[weight]['exp_avg'].stride() == weight.stride()


def test_frozen_values_are_not_kept(training, snapshot):
    assert b'parameters/2.weight' in snapshot.path.read_bytes()
    assert b'parameters/0.weight' not in snapshot.path.read_bytes()


@pytest.mark.parametrize('spoil', [
    lambda t: t.model[2].weight.data.fill_(float('nan')),
    lambda t: t.model[2].weight.data.fill_(float('inf')),
    lambda t: t.model[1].running_mean.fill_(float('nan')),
    lambda t: t.runner.optim_wrapper.optimizer.state[t.model[2].bias][
        'exp_avg'].fill_(float('inf')),
])  # yapf: disable
def test_lost_values_are_never_kept(training, snapshot, spoil):
    before = snapshot.path.read_bytes()
    spoil(training)
    with pytest.raises(FloatingPointError, match='not finite at iteration 4'):
        snapshot.save(training.runner, training.model, 4, 2.)
    assert snapshot.path.read_bytes() == before


def test_snapshot_of_another_model_is_refused(training, snapshot):
    other = Training(width=5)
    with pytest.raises(ValueError, match='another model, 1.weight differs'):
        snapshot.restore(other.runner, other.model)


def test_discarded_snapshot_is_gone(training, snapshot):
    snapshot.discard()
    assert not snapshot.exists()
