# SPDX-License-Identifier: Apache-2.0
"""Memory of training, in a process of its own."""
from __future__ import annotations

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mmseg_mile.benchmarks.peak_memory import (live_bytes, peak_growth,
                                               peak_training_bytes)

pytestmark = pytest.mark.integration


def test_training_takes_memory(cnn_config, settings):
    small = dataclasses.replace(settings, experts=1, threads=1)
    found = peak_training_bytes(cnn_config, 'ours, all stages', small)
    assert 2**20 < found < 2**30


def test_peak_growth_counts_what_is_held_at_once():
    kept = []

    def step():
        first = torch.ones(1000, dtype=torch.float64)
        kept.append(first + 1)
        del first
        kept.append(torch.ones(500, dtype=torch.float64))

    # two of 8,000 bytes at once, then one of them and 4,000
    assert peak_growth(step) == pytest.approx(16000, abs=1024)


def test_live_bytes_count_a_storage_once():
    before = live_bytes()
    tensor = torch.ones(100_000)
    views = [tensor[:10], tensor.view(10, -1)]
    assert live_bytes() - before == tensor.nbytes and len(views) == 2


def test_tensors_of_a_traced_graph_take_no_memory():
    before = live_bytes()
    with FakeTensorMode():
        traced = torch.ones(100_000)
    assert live_bytes() == before and traced.numel() == 100_000
