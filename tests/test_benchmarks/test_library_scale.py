# SPDX-License-Identifier: Apache-2.0
"""Many experts against few."""
from __future__ import annotations

import dataclasses

import pytest

from mmseg_mile.benchmarks import benchmark_scale, library_scale


@pytest.fixture(autouse=True)
def no_processes(monkeypatch):
    """Memory is measured in test_library_memory."""
    monkeypatch.setattr(
        library_scale, 'library_memory', lambda config, folder, count, _: dict(
            opened=count << 20, used=count << 21))


@pytest.fixture(scope='module')
def single(settings):
    return dataclasses.replace(settings, rounds=1)


def test_table_has_every_library(cnn_config, single):
    report = benchmark_scale([cnn_config], single, [4, 2])
    assert [row['experts'] for row in report.rows] == [2, 4]
    few, many = report.rows
    assert few['memory_ratio'] is None
    assert many['used_mebibytes'] == 4
    assert many['memory_ratio'] > 0
    assert report.failures == []


def test_other_label_maps_are_a_failure(cnn_config, single, monkeypatch):
    make = library_scale._contender

    def disturbed(library, model, settings):
        ours = make(library, model, settings)
        if len(model.expert_names) > 2:
            ours.subject.inputs = -ours.subject.inputs
        return ours

    monkeypatch.setattr(library_scale, '_contender', disturbed)
    report = benchmark_scale([cnn_config], single, [2, 3])
    failure, = report.failures
    assert failure == ('tiny_cnn: 3 experts predict other label maps than 2')


@pytest.mark.parametrize('counts', [[3], [3, 3], [0, 3]])
def test_counts_that_compare_nothing_are_refused(cnn_config, single, counts):
    with pytest.raises(ValueError, match='--counts must name at least two'):
        benchmark_scale([cnn_config], single, counts)
