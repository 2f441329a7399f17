# SPDX-License-Identifier: Apache-2.0
"""A training step against full fine-tuning and PEFT."""
from __future__ import annotations

import dataclasses

import pytest

from mmseg_mile.benchmarks import benchmark_training, training
from mmseg_mile.benchmarks.train_contenders import CONTENDERS, OurExpert

NAMES = [kind.name for kind in CONTENDERS]


@pytest.fixture(scope='module')
def small(settings):
    return dataclasses.replace(settings, experts=1)


@pytest.fixture(autouse=True)
def no_processes(monkeypatch):
    """Memory is measured in test_peak_memory."""
    monkeypatch.setattr(training, 'peak_training_bytes',
                        lambda config, name, settings: 2**20 * len(name))


def test_table_has_every_contender(mit_config, small):
    report = benchmark_training([mit_config], small)
    assert [row['contender'] for row in report.rows] == NAMES
    assert report.failures == []
    assert {bar.group
            for bar in report.bars
            } == {'tiny_mit: time', 'tiny_mit: peak memory'}


def test_losses_of_a_cnn_agree(cnn_config, small):
    report = benchmark_training([cnn_config], small)
    assert report.failures == []
    assert all(row['loss_difference'] < 1e-4 * row['loss']
               for row in report.rows)


def test_other_loss_is_a_failure(mit_config, small, monkeypatch):
    monkeypatch.setattr(OurExpert, 'loss', lambda self: 1.0)
    report = benchmark_training([mit_config], small)
    assert report.failures[0].startswith('tiny_mit, ours, all stages: loss')
    assert report.rows[1]['note'].startswith('WRONG LOSS')
