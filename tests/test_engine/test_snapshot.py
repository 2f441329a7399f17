# SPDX-License-Identifier: Apache-2.0
"""Random numbers and training that go on bit by bit."""
from __future__ import annotations

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.optim import OptimWrapper, PolyLR
from torch import nn

from mmseg_mile.engine import snapshot as snapshot_module
from mmseg_mile.engine.snapshot import (TaskSnapshot, pack, random_state,
                                        sample_seed, seeded, set_random_state,
                                        unpack)

# -- random state -------------------------------------------------------------


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
    # numpy's old generator draws normal values in pairs, and holds one back
    np.random.normal()
    state = random_state()
    undisturbed = draw()
    set_random_state(state)
    with seeded(5):
        draw()
    assert draw() == undisturbed


def test_seed_depends_on_every_part():
    parts = ((0, 'day', 1), (0, 'day', 2), (0, 'night', 1), (1, 'day', 1))
    seeds = {sample_seed(*each) for each in parts}
    assert len(seeds) == 4 and max(seeds) < 2**32


# -- nested states ------------------------------------------------------------


@pytest.mark.parametrize('value', [
    None, True, 3, 0.1 + 0.2, 1e-320, 'text', [], {}, (), [1, (2, [3])],
    {0: 'number', '0': 'text'}, {'tensor': 1}, {'a': {'dict': (None, )}}
])  # yapf: disable
def test_plain_values_come_back(value):
    again = unpack(json.loads(json.dumps(pack(value, {}))), {})
    assert again == value and type(again) is type(value)


def test_tensors_are_named_by_their_place_and_numpy_becomes_plain():
    tensors, step = {}, torch.ones(2)
    packed = pack({'optimizer': [{3: step}, np.float64(0.5)]}, tensors)
    assert list(tensors) == ['/optimizer/0/3']
    assert unpack(packed, tensors) == {'optimizer': [{3: step}, 0.5]}


def test_anything_else_is_refused_with_its_place():
    with pytest.raises(ValueError, match='/hook/1 is a function'):
        pack({'hook': [1, lambda: None]}, {})


# -- training -----------------------------------------------------------------


class Training:
    """A frozen layer, a trained one with momentum, and a norm layer."""

    def __init__(self, width=4):
        self.model = nn.Sequential(
            nn.Conv2d(3, width, 1), nn.BatchNorm2d(width),
            nn.Conv2d(width, 2, 3)).to(memory_format=torch.channels_last)
        self.model[0].requires_grad_(False)
        optimizer = torch.optim.AdamW(
            (p for p in self.model.parameters() if p.requires_grad), lr=0.1)
        self.runner = SimpleNamespace(
            optim_wrapper=OptimWrapper(optimizer),
            param_schedulers=[
                PolyLR(optimizer, eta_min=0, end=20, by_epoch=False)
            ])

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
    return resumed, snapshot.restore(resumed.runner, resumed.model)


def test_training_goes_on_bit_by_bit(training, resumed):
    known = resumed[1]
    assert (known['iteration'], known['seconds']) == (3, 1.5)
    for each in (training, resumed[0]):
        set_random_state(known['random'])
        each.step(4)
    mine, theirs = resumed[0].model.state_dict(), training.model.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    rates = [
        t.runner.optim_wrapper.optimizer.param_groups[0]['lr']
        for t in (training, resumed[0])
    ]
    assert rates[0] == rates[1] < 0.1


def test_optimizer_state_has_the_memory_format_of_its_parameter(resumed):
    optimizer = resumed[0].runner.optim_wrapper.optimizer
    weight = resumed[0].model[2].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert optimizer.state[weight]['exp_avg'].stride() == weight.stride()


def test_frozen_values_are_not_kept(training, snapshot):
    assert b'parameters/2.weight' in snapshot.path.read_bytes()
    assert b'parameters/0.weight' not in snapshot.path.read_bytes()


@pytest.mark.parametrize('spoil, name', [
    (lambda t: t.model[2].weight.data.fill_(float('nan')), '2.weight'),
    (lambda t: t.model[2].weight.data.fill_(float('inf')), '2.weight'),
    (lambda t: t.model[1].running_mean.fill_(float('nan')), 'running_mean'),
    (lambda t: t.runner.optim_wrapper.optimizer.state[t.model[2].bias][
        'exp_avg'].fill_(float('inf')), 'exp_avg'),
])  # yapf: disable
def test_lost_values_are_never_kept(training, snapshot, spoil, name):
    before = snapshot.path.read_bytes()
    spoil(training)
    with pytest.raises(
            FloatingPointError, match=f'{name} is not finite at iteration 4'):
        snapshot.save(training.runner, training.model, 4, 2.)
    assert snapshot.path.read_bytes() == before


def test_mask_may_be_infinite(training, snapshot):
    training.model.register_buffer('mask', torch.full((2, ), -float('inf')))
    snapshot.save(training.runner, training.model, 4, 2.)


# -- the file -----------------------------------------------------------------


def test_write_that_fails_leaves_the_old_snapshot(training, snapshot,
                                                  monkeypatch):
    before = snapshot.path.read_bytes()

    def no_room(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('os.fsync', no_room)
    with pytest.raises(OSError, match='snapshot.safetensors'):
        snapshot.save(training.runner, training.model, 4, 2.)
    assert snapshot.path.read_bytes() == before
    assert len(list(snapshot.path.parent.iterdir())) == 1


@pytest.mark.parametrize('spoil', [
    lambda content: bytes([content[0] ^ 1]) + content[1:],
    lambda content: content[:60] + bytes([content[60] ^ 1]) + content[61:],
    lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    lambda content: content[:-1],
    lambda content: content[:100],
    lambda content: b'',
])
def test_changed_or_truncated_file_is_refused(training, snapshot, spoil):
    snapshot.path.write_bytes(spoil(snapshot.path.read_bytes()))
    with pytest.raises(
            ValueError,
            match='snapshot.safetensors cannot be resumed .* remove it, and'):
        snapshot.restore(training.runner, training.model)


def test_snapshot_of_another_model_or_version_is_refused(
        training, snapshot, monkeypatch):
    other = Training(width=5)
    with pytest.raises(ValueError, match='another model, 1.bias differs'):
        snapshot.restore(other.runner, other.model)
    monkeypatch.setattr(snapshot_module, '_SCHEMA', 99)
    with pytest.raises(ValueError, match='schema 2'):
        snapshot.restore(training.runner, training.model)


def test_discarded_snapshot_is_gone(training, snapshot):
    snapshot.discard()
    assert not snapshot.path.exists()
