# SPDX-License-Identifier: Apache-2.0
"""Experts whose values are drawn."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.benchmarks.benchmark_models import (build_expert_segmentor,
                                                    load_model_config)
from mmseg_mile.benchmarks.domain_images import domain_images
from mmseg_mile.benchmarks.drawn_experts import ExpertDrawer, check_mixing


@pytest.fixture
def drawn(cnn_config, settings):
    config = load_model_config(cnn_config, settings)
    model = build_expert_segmentor(config, settings)
    drawer = ExpertDrawer(model, config, domain_images(settings), settings)
    return model, list(drawer.draw(3))


def test_no_adapter_is_zero(drawn):
    for expert in drawn[1]:
        assert all(v.abs().sum() > 0 for v in expert.parts['adapter'].values())


def test_experts_differ_in_every_part(drawn):
    first, second, _ = drawn[1]
    for part in ('adapter', 'norm', 'head', 'prototypes'):
        mine, other = first.parts[part], second.parts[part]
        assert any(not torch.equal(mine[k], other[k]) for k in mine)


def test_variances_stay_positive(drawn):
    for expert in drawn[1]:
        for part in ('norm', 'head'):
            for key, value in expert.parts[part].items():
                assert 'running_var' not in key or (value > 0).all()


def test_model_stays_without_experts(drawn):
    assert drawn[0].expert_names == ()


def test_experts_fit_the_model(drawn):
    model, experts = drawn
    for expert in experts:
        model.import_expert(expert)
    assert model.expert_names == ('expert_0', 'expert_1', 'expert_2')


def test_gate_sends_each_image_to_its_own_expert(subject):
    routing = subject.model.route(subject.inputs)
    check_mixing(routing, 2)
    assert [routing.top_expert(i)
            for i in range(2)] == ['expert_0', 'expert_1']


def test_other_routing_is_noticed(subject):
    routing = subject.model.route(subject.inputs.flip(0))
    with pytest.raises(AssertionError, match='the gate chose'):
        check_mixing(routing, 2)


def test_gate_that_sees_no_image_is_refused(cnn_config, settings):
    config = load_model_config(cnn_config, settings)
    config.gate = dict(type='OracleGate')
    model = build_expert_segmentor(config, settings)
    with pytest.raises(ValueError, match='OracleGate, which looks at no'):
        ExpertDrawer(model, config, domain_images(settings), settings)
