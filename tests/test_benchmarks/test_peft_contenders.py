# SPDX-License-Identifier: Apache-2.0
"""PEFT on plain MMSegmentation."""
from __future__ import annotations

import pytest

from mmseg_mile.benchmarks import prediction
from mmseg_mile.benchmarks.benchmark_models import load_model_config
from mmseg_mile.benchmarks.comparison import compare
from mmseg_mile.benchmarks.contenders import Stock
from mmseg_mile.benchmarks.peft_contenders import PeftMixedBatch, PeftTwoPasses


def difference(kind, subject):
    contender, stock = kind(subject), Stock(subject)
    for item in (contender, stock):
        item.prepare()
    return contender, compare(contender.outputs(), stock.outputs())


@pytest.fixture
def frozen_norms(cnn_config, settings, monkeypatch):
    """A CNN whose experts own no norm layers."""

    def load(path, settings):
        config = load_model_config(path, settings)
        config.backbone.train_norm = False
        return config

    monkeypatch.setattr(prediction, 'load_model_config', load)
    return prediction.make_subject(cnn_config, settings)


@pytest.mark.parametrize('kind', [PeftTwoPasses, PeftMixedBatch])
def test_convolutions_predict_what_stock_predicts(kind, frozen_norms):
    contender, found = difference(kind, frozen_norms)
    assert contender.must_equal
    assert found.passed


def test_owned_norms_follow_the_adapter(cnn_config, settings):
    subject = prediction.make_subject(cnn_config, settings)
    assert difference(PeftTwoPasses, subject)[1].passed


def test_packed_attention_is_known_to_differ(subject):
    contender, found = difference(PeftTwoPasses, subject)
    assert not contender.must_equal
    assert 'out_proj' in contender.note
    assert found.logits > 1e-4


def test_packed_attention_refuses_a_mixed_batch(subject):
    contender = PeftMixedBatch(subject)
    contender.prepare()
    with pytest.raises(TypeError, match='mixed adapter batches'):
        contender.run()
