# SPDX-License-Identifier: Apache-2.0
"""Autoencoders with weights that were set by hand."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.methods.baselines.autoencoder_gates import (ConvAutoencoder,
                                                            LinearAutoencoder)

NETWORKS = [LinearAutoencoder(48, 4), ConvAutoencoder((3, 4, 4), (5, 6), 2)]
by_network = pytest.mark.parametrize(
    'network', NETWORKS, ids=['linear', 'conv'])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_linear_autoencoder_is_its_formula():
    weights = {
        'encoder.weight': torch.tensor([[1., -1]]),
        'encoder.bias': torch.tensor([0.5]),
        'decoder.weight': torch.tensor([[2.], [0.]]),
        'decoder.bias': torch.tensor([0., -1])
    }
    network = LinearAutoencoder(2, 1)
    # codes relu(1 - 0 + 0.5) = 1.5 and relu(0 - 1 + 0.5) = 0
    got = network(weights, torch.tensor([[1., 0], [0., 1]]))
    torch.testing.assert_close(got,
                               torch.tensor([[3., -1], [0., -1]]).sigmoid())


def test_convolutions_lead_to_the_code_and_back():
    network = ConvAutoencoder((1, 4, 4), (1, ), 1)
    weights = {k: torch.zeros(s) for k, s in network.shapes().items()}
    # each pixel of every other row and column is seen; their sum is the code
    weights['down.0.weight'][0, 0, 1, 1] = 1
    weights['encoder.weight'].fill_(1)
    # the code goes to the first place of the grid, and from there to the
    # pixels that a transposed kernel of 4 with padding 1 reaches
    weights['decoder.weight'][0] = 1
    weights['up.0.weight'].fill_(1)
    image = torch.arange(16.).view(1, 16)
    reached = torch.zeros(4, 4)
    reached[:3, :3] = 0 + 2 + 8 + 10
    torch.testing.assert_close(
        network(weights, image),
        reached.view(1, 16).sigmoid())


@by_network
def test_output_has_the_shape_of_the_input(network):
    values = torch.rand(5, 48)
    out = network(network.draw(generator()), values)
    assert out.shape == values.shape
    assert (out > 0).all() and (out < 1).all()


@by_network
def test_every_weight_gets_a_gradient(network):
    weights = {
        k: v.requires_grad_()
        for k, v in network.draw(generator()).items()
    }
    network(weights, torch.rand(5, 48)).square().sum().backward()
    assert all(v.grad.any() for v in weights.values())


@by_network
def test_drawn_weights_follow_the_generator(network):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (network.draw(generator(seed)) for seed in (1, 1, 2))
    assert {k: v.shape for k, v in first.items()} == network.shapes()
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first['encoder.weight'], other['encoder.weight'])
    assert torch.equal(torch.get_rng_state(), before)
