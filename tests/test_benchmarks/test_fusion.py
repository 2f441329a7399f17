# SPDX-License-Identifier: Apache-2.0
"""Fused prediction against stock and PEFT."""
from __future__ import annotations

import copy
import dataclasses

import pytest

from mmseg_mile.benchmarks import benchmark_fusion, fusion
from mmseg_mile.benchmarks.fusion_contenders import OursAllFused, PlainStock

NAMES = [kind.name for kind in fusion.CONTENDERS]


@pytest.fixture(scope='module')
def report(mit_config, cnn_config, settings):
    return benchmark_fusion([mit_config, cnn_config], settings, 6)


def test_table_has_every_contender_of_every_model(report):
    rows = [(row['model'], row['contender']) for row in report.rows]
    assert rows == [(m, n) for m in ('tiny_mit', 'tiny_cnn') for n in NAMES]


def test_outputs_agree(report):
    assert report.failures == []
    mixed = [r for r in report.rows if 'logits_difference' in r]
    assert len(mixed) == 10
    ours = [r for r in mixed if 'ours' in r['contender']]
    assert len(ours) == 6
    assert all(row['logits_difference'] <= 1e-4 for row in ours)


def test_goal_stands_beside_what_it_is_for(report):
    goals = {r['contender'] for r in report.rows if r['goal'] is not None}
    assert goals == {OursAllFused.name}


def test_title_says_how_many_experts_are_mixed(report):
    assert 'batch of 2, each image with weights of its own for 6' in (
        report.title)


@pytest.mark.parametrize('library', [0, 1])
def test_library_that_mixes_nothing_is_refused(library, mit_config, settings):
    with pytest.raises(
            ValueError, match=f'--library must be at least 2, got {library}'):
        benchmark_fusion([mit_config], settings, library)


def test_wrong_output_is_a_failure(mit_config, settings, monkeypatch):

    class Forgetful(OursAllFused):
        """Leaves out an expert that has a share in every image."""

        name = 'forgetful'

        def predict(self, inputs):
            others = copy.deepcopy(self.subject.model.gate)
            others.remove('expert_1')
            with self.subject.model.gated(others):
                return super().predict(inputs)

    monkeypatch.setattr(fusion, 'CONTENDERS', (PlainStock, Forgetful))
    report = benchmark_fusion([mit_config],
                              dataclasses.replace(settings, rounds=1), 3)
    failure, = report.failures
    assert failure.startswith('tiny_mit, forgetful: Difference')
    assert report.rows[1]['note'].startswith('WRONG OUTPUT')
