# SPDX-License-Identifier: Apache-2.0
"""SemLA's way on plain MMSegmentation."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.benchmarks.comparison import compare
from mmseg_mile.benchmarks.fusion_contenders import PlainStock
from mmseg_mile.benchmarks.peft_fusion import PeftAllFused, PeftFiveFused
from mmseg_mile.benchmarks.prediction import make_subject


def found(kind, config, settings):
    subject = make_subject(config, settings, 6)
    contender, stock = kind(subject), PlainStock(subject)
    for item in (contender, stock):
        item.prepare()
    references = stock.mixed(contender.routing())
    return contender, compare(contender.outputs(), references)


@pytest.mark.parametrize('kind', [PeftAllFused, PeftFiveFused])
def test_convolutions_predict_what_the_mean_predicts(kind, cnn_config,
                                                     settings):
    contender, difference = found(kind, cnn_config, settings)
    assert contender.must_equal
    assert difference.passed


def test_packed_attention_is_known_to_differ(mit_config, settings):
    contender, difference = found(PeftAllFused, mit_config, settings)
    assert not contender.must_equal and 'out_proj' in contender.note
    assert difference.logits > 1e-4


def test_no_fused_adapter_stays(cnn_config, settings):
    contender = PeftAllFused(make_subject(cnn_config, settings, 3))
    contender.prepare()
    before = set(contender._peft.peft_config)
    norms = dict(contender._norms)
    contender.run()
    assert set(contender._peft.peft_config) == before
    assert before == {'expert_0', 'expert_1', 'expert_2'}
    assert all(contender._norms[k] is v for k, v in norms.items())
    assert all(torch.isfinite(v).all() for v in norms.values())
