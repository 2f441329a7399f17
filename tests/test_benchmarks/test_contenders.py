# SPDX-License-Identifier: Apache-2.0
"""Ways to predict."""
from __future__ import annotations

import torch

from mmseg_mile.benchmarks.comparison import compare
from mmseg_mile.benchmarks.contenders import Base, Ours, Stock


def prepared(kind, subject):
    contender = kind(subject)
    contender.prepare()
    return contender


def test_ours_predicts_what_the_stock_checkpoints_predict(subject):
    references = prepared(Stock, subject).outputs()
    assert compare(prepared(Ours, subject).outputs(), references).passed


def test_run_and_outputs_agree_on_label_maps(subject):
    ours = prepared(Ours, subject)
    for mine, other in zip(ours.run(), ours.outputs()):
        assert torch.equal(mine.pred_sem_seg.data, other.pred_sem_seg.data)


def test_base_uses_no_adapter(subject):
    base = prepared(Base, subject)
    before = [s.pred_sem_seg.data for s in base.run()]
    for expert in subject.experts:
        for value in subject.model.backbone.experts[expert.name].lora.values():
            value.zero_()
    for mine, other in zip(base.run(), before):
        assert torch.equal(mine.pred_sem_seg.data, other)
