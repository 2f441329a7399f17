# SPDX-License-Identifier: Apache-2.0
"""SemLA's routing on 2-D embeddings."""
from __future__ import annotations

import math

import pytest
import torch

from mmseg_mile.gates.prototype_gate import PrototypeGate
from mmseg_mile.methods.semla.semla_gate import SemLAGate

# nine images around (0, 0)
SQUARE = torch.cartesian_prod(*[torch.tensor([-.1, 0, .1])] * 2)
MEANS = dict(a=(0., 0.), b=(0., 4.), c=(3., 0.), d=(30., 40.))


def gate_of(**options):
    """Fit a gate on a small square of images around each mean."""
    gate = SemLAGate(**options)
    for name, mean in MEANS.items():
        gate.fit(name, torch.tensor([mean]) + SQUARE)
    return gate


def weights(gate, *points):
    routing = gate.route(torch.tensor(points).float(), [None] * len(points))
    return routing.weights


def shares(near, far):
    """``softmax(1 / (d tau))`` of two distances, at tau = 0.5."""
    near, far = math.exp(1 / (near * 0.5)), math.exp(1 / (far * 0.5))
    return torch.tensor([near, far]) / (near + far)


def test_weights_are_those_of_the_paper_over_the_nearest():
    # the means of a, b, c are 1, 3 and sqrt(10) from (0, 1)
    found = weights(gate_of(top_k=2, tau=0.5), (0., 1.))[0]
    torch.testing.assert_close(found[:2], shares(1, 3))
    assert found[2:].tolist() == [0, 0]


def test_temperature_counts_relative_to_the_nearest_if_asked():
    # the means of a and c are 2 and sqrt(13) from (0, -2)
    found = weights(gate_of(top_k=2, tau=0.5, relative=True), (0., -2.))[0]
    torch.testing.assert_close(found[[0, 2]], shares(1, math.sqrt(13) / 2))


def test_image_on_a_mean_goes_to_its_expert_alone():
    assert weights(gate_of(), (3., 0.)).tolist() == [[0, 0, 1, 0]]


def test_default_fuses_five_and_fewer_where_there_are_fewer():
    assert SemLAGate().top_k == 5
    assert (weights(gate_of(relative=True, tau=1.), (1., 1.)) > 0).all()


def test_uniform_weighting_shares_among_the_nearest():
    found = weights(gate_of(weighting='uniform', top_k=2), (0., 1.))
    assert found.tolist() == [[.5, .5, 0, 0]]


def test_flag_and_distances_are_those_of_the_prototype_gate():
    gate, stock = gate_of(), PrototypeGate(metric='euclidean')
    for name in MEANS:
        stock.load_state(name, gate.state(name))
    points = torch.tensor([[0., 1.], [3., 0.05], [300., 0.]])
    mine, theirs = (g.route(points, [None] * 3) for g in (gate, stock))
    assert torch.equal(mine.distances, theirs.distances)
    assert mine.ood.tolist() == theirs.ood.tolist() == [True, False, True]


@pytest.mark.parametrize(('options', 'message'), [
    (dict(tau=0), 'gate.tau must be > 0, got 0'),
    (dict(tau=float('nan')), 'gate.tau must be > 0, got nan'),
    (dict(weighting='soft'), "gate.weighting must be one of .*, got 'soft'"),
    (dict(top_k=0), 'gate.top_k must be >= 1, got 0'),
    (dict(temperature=2.), 'SemLAGate has no temperature: set gate.tau'),
])
def test_option_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SemLAGate(**options)
