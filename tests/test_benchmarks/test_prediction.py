# SPDX-License-Identifier: Apache-2.0
"""Routed prediction against stock and PEFT."""
from __future__ import annotations

import dataclasses

import pytest

from mmseg_mile.benchmarks import benchmark_prediction, prediction
from mmseg_mile.benchmarks.contenders import Ours

NAMES = [kind.name for kind in prediction.CONTENDERS]


@pytest.fixture(scope='module')
def report(mit_config, cnn_config, settings):
    return benchmark_prediction([mit_config, cnn_config], settings)


def test_table_has_every_contender_of_every_model(report):
    rows = [(row['model'], row['contender']) for row in report.rows]
    assert rows == [(m, n) for m in ('tiny_mit', 'tiny_cnn') for n in NAMES]


def test_outputs_agree(report):
    assert report.failures == []
    ours = [r for r in report.rows if r['contender'] == Ours.name]
    assert all(row['logits_difference'] <= 1e-4 for row in ours)
    assert all(row['num_labels'] > 1 for row in ours)


def test_stock_counts_as_one(report):
    assert all(row['ratio'] == 1 for row in report.rows
               if row['contender'] == 'stock mmseg')


def test_what_peft_raises_is_said(report):
    row = report.rows[NAMES.index('PEFT, mixed batch')]
    assert row['ratio'] is None
    assert row['note'].startswith('raised TypeError: lora.MultiheadAttention')


@pytest.mark.parametrize('changes', [
    dict(mode='slide', size=128),
    dict(dtype='bf16'),
    dict(batch=3),
])
def test_other_settings_run(mit_config, settings, changes):
    changed = dataclasses.replace(settings, rounds=1, **changes)
    report = benchmark_prediction([mit_config], changed)
    assert report.failures == []


def test_wrong_output_is_a_failure(mit_config, settings, monkeypatch):
    make = prediction.make_subject

    def disturbed(path, settings):
        subject = make(path, settings)
        head = subject.model.heads['expert_1'].state
        head['conv_seg.weight'] = 1.01 * head['conv_seg.weight']
        # only ours reads it: stock is exported before
        return subject

    class ExportedEarlier(prediction.Stock):
        """Stock checkpoints of the experts as they were drawn."""

        def prepare(self):
            model = self.subject.model
            self.subject.model = make(mit_config, settings).model
            super().prepare()
            self.subject.model = model

    monkeypatch.setattr(prediction, 'make_subject', disturbed)
    monkeypatch.setattr(prediction, 'CONTENDERS',
                        (ExportedEarlier, prediction.Ours))
    report = benchmark_prediction([mit_config], settings)
    failure, = report.failures
    assert failure.startswith('tiny_mit, ours, routed: Difference')
    assert report.rows[1]['note'].startswith('WRONG OUTPUT')
    assert 'FAILED: tiny_mit' in report.markdown()
