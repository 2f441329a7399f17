# SPDX-License-Identifier: Apache-2.0
"""Gates of the methods that are compared without some experts."""
from __future__ import annotations

import math

import pytest
import torch

from mmseg_mile.engine.left_out_gates import (fitted_gates, gate_options,
                                              left_out_methods, oracle_method,
                                              views_wanted)
from mmseg_mile.evaluation.left_out_methods import COMPARED, OOD_POLICIES
from mmseg_mile.gates.prototype_gate import PrototypeGate
from mmseg_mile.gates.simple_gates import RandomGate
from mmseg_mile.methods.semla.semla_gate import SemLAGate

OPTIONS = gate_options(SemLAGate(top_k=2, tau=1.0, relative=True), {})
# means at 0, 3 and 6 on a line
IMAGES = {
    name: torch.tensor([[at - 1.0], [at + 1.0]])
    for name, at in (('day', 0), ('dusk', 3), ('fog', 6))
}


@pytest.fixture
def routed():
    """``routed(method)``: weights of an image at 1, 2 and 5 from the means."""
    methods = left_out_methods(OPTIONS, [0.5])
    fitted = dict(
        (method.name, gate)
        for method, gate in fitted_gates(list(methods.values()), IMAGES))

    def run(name):
        routing = fitted[name].route(torch.tensor([[1.0]]), [None])
        assert routing.expert_names == ('day', 'dusk', 'fog')
        return routing.weights[0].tolist()

    return run


def test_every_compared_method_but_the_oracle_has_a_gate():
    assert [*left_out_methods(OPTIONS)] == [*COMPARED[1:], *OOD_POLICIES]
    assert oracle_method('fog').gate == dict(type='FixedGate', expert='fog')


def test_weights_of_each_method(routed):
    assert routed('base') == [0, 0, 0]
    assert routed('uniform') == pytest.approx([1 / 3] * 3)
    assert routed('nearest') == [1, 0, 0]
    # relative distances 1 and 2, tau 1: softmax of 1 and 1/2
    first = 1 / (1 + math.exp(-0.5))
    assert routed('fused') == pytest.approx([first, 1 - first, 0])
    # tau 1/2: softmax of 2 and 1
    first = 1 / (1 + math.exp(-1))
    assert routed('fused_adapters_tau_0.5') == pytest.approx(
        [first, 1 - first, 0])


def test_weights_are_the_same_whatever_is_fused(routed):
    methods = left_out_methods(OPTIONS)
    for name in ('uniform', 'fused'):
        assert methods[name].fusion == 'weights'
        assert methods[f'{name}_adapters'].fusion == 'adapters'
        assert methods[f'{name}_outputs'].fusion == 'logits'
        for other in ('adapters', 'outputs'):
            assert routed(f'{name}_{other}') == routed(name)


def test_policies_start_from_the_nearest(routed):
    methods = left_out_methods(OPTIONS)
    for name, policy in zip(OOD_POLICIES, ('fuse', 'base', 'abstain')):
        assert methods[name].ood_policy == policy
        assert routed(name) == routed('nearest')


def test_gate_is_as_if_a_removed_task_had_never_been():
    """Also covariance and calibration, which tasks share."""
    torch.manual_seed(0)
    images = {name: torch.randn(20, 3) * (1 + i) for i, name in
              enumerate(('day', 'dusk', 'fog'))}  # yapf: disable
    options = gate_options(PrototypeGate(), {})
    rest = {name: images[name] for name in ('dusk', 'fog')}
    methods = [left_out_methods(options)['nearest']]
    (_, gate), = fitted_gates(methods, rest)
    alone = SemLAGate(metric='mahalanobis')
    for name, x in rest.items():
        alone.fit(name, x)
    x = torch.randn(8, 3)
    assert torch.equal(gate.distances(x), alone.distances(x))
    assert torch.equal(
        gate.route(x, [None] * 8).ood,
        alone.route(x, [None] * 8).ood)


def test_statistics_are_those_of_the_gate_of_the_run():
    gate = PrototypeGate('cosine', num_prototypes=2, ood_quantile=0.9)
    assert gate_options(gate, {}) == dict(
        top_k=5,
        tau=0.4,
        relative=True,
        metric='cosine',
        num_prototypes=2,
        ood_quantile=0.9,
        shrinkage=0.1,
        perturbation_weight=0.25,
        flag='own')
    assert OPTIONS['top_k'] == 2 and OPTIONS['tau'] == 1.0


def test_run_without_prototypes_gets_those_of_semla():
    assert gate_options(RandomGate(), {})['metric'] == 'euclidean'


def test_changes_come_before_the_gate_of_the_run():
    found = gate_options(PrototypeGate(), dict(metric='euclidean', tau=2.0))
    assert (found['metric'], found['tau']) == ('euclidean', 2.0)


@pytest.mark.parametrize('change, message', [
    (dict(temperature=1), "--gate has no option 'temperature', options are"),
    (dict(weighting='uniform'), "--gate has no option 'weighting'"),
    (dict(tau=0), 'gate.tau must be > 0, got 0'),
    (dict(metric='far'), 'gate.metric must be one of'),
])
def test_wrong_option_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        gate_options(PrototypeGate(), change)


@pytest.mark.parametrize(
    'changes, looks', [({}, 1), (dict(metric='mahalanobis'), 2),
                       (dict(metric='mahalanobis', perturbation_weight=0), 1)])
def test_images_are_looked_at_as_often_as_the_gates_want(changes, looks):
    methods = left_out_methods(gate_options(SemLAGate(), changes))
    assert views_wanted(list(methods.values())) == looks
