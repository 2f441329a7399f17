# SPDX-License-Identifier: Apache-2.0
"""Ways to predict images that mix experts."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.benchmarks.comparison import compare
from mmseg_mile.benchmarks.fusion_contenders import (OursAllFused,
                                                     OursFiveFused,
                                                     OursLowRankFused,
                                                     PlainStock)
from mmseg_mile.benchmarks.prediction import make_subject

COUNT = 7


@pytest.fixture(scope='module')
def subject(mit_config, settings):
    """A transformer that holds seven experts."""
    return make_subject(mit_config, settings, COUNT)


def prepared(kind, subject):
    contender = kind(subject)
    contender.prepare()
    return contender


@pytest.fixture
def stock(subject):
    return prepared(PlainStock, subject)


@pytest.mark.parametrize('kind, count', [
    (OursAllFused, COUNT),
    (OursFiveFused, 5),
    (OursLowRankFused, COUNT),
])
def test_every_image_mixes_the_experts_in_its_own_way(kind, count, subject):
    routing = prepared(kind, subject).routing()
    first, second = (routing.mixture(i) for i in range(2))
    assert len(first) == len(second) == count
    assert first != second


@pytest.mark.parametrize('kind', [
    OursAllFused, OursFiveFused, OursLowRankFused
])  # yapf: disable
def test_ours_predicts_what_the_mean_of_checkpoints_predicts(
        kind, subject, stock):
    contender = prepared(kind, subject)
    references = stock.mixed(contender.routing())
    assert compare(contender.outputs(), references).passed


def test_mean_of_checkpoints_is_no_single_one(subject, stock):
    routing = prepared(OursAllFused, subject).routing()
    assert not compare(stock.mixed(routing), stock.outputs()).passed


def test_stock_has_the_first_expert_again_after_a_mean(subject, stock):
    before = [s.seg_logits.data for s in stock.outputs()]
    stock.mixed(prepared(OursAllFused, subject).routing())
    for sample, other in zip(stock.outputs(), before):
        assert torch.equal(sample.seg_logits.data, other)


def test_no_run_finds_the_weights_of_another(subject, monkeypatch):
    ours = prepared(OursAllFused, subject)
    merges, library = [], subject.model.backbone.experts
    merge = library._merge
    monkeypatch.setattr(
        library, '_merge', lambda *args:
        (merges.append(args[0]), merge(*args))[1])
    for _ in range(3):
        ours.run()
    assert len(merges) == len(set(merges)) == 6


def test_gate_of_the_model_is_there_again(subject):
    gate = subject.model.gate
    ours = prepared(OursAllFused, subject)
    ours.run()
    assert subject.model.gate is gate


def test_images_of_one_mixture_are_noticed(subject, monkeypatch):
    monkeypatch.setattr(OursAllFused, 'top_k', 1)
    prepared(OursAllFused, subject)
    monkeypatch.setattr(subject, 'inputs',
                        subject.inputs[:1].repeat(2, 1, 1, 1))
    with pytest.raises(AssertionError, match='must mix 1 experts in its own'):
        prepared(OursAllFused, subject)
