# SPDX-License-Identifier: Apache-2.0
"""A library of drawn experts on disk."""
from __future__ import annotations

from mmseg_mile.benchmarks.benchmark_models import build_expert_segmentor
from mmseg_mile.benchmarks.written_library import write_library
from mmseg_mile.library.expert_store import ExpertStore


def test_first_experts_are_opened(cnn_config, settings, tmp_path):
    library = write_library(cnn_config, tmp_path, 3, settings)
    model = build_expert_segmentor(library.config, settings)
    library.open(model, 2)
    assert model.expert_names == ('expert_0', 'expert_1')


def test_bytes_are_those_of_the_tensors(cnn_config, settings, tmp_path):
    library = write_library(cnn_config, tmp_path, 1, settings)
    expert = ExpertStore(tmp_path).load('expert_0')
    tensors = [
        value for part in ('adapter', 'norm', 'head')
        for value in expert.parts[part].values()
    ]
    assert library.num_bytes == [
        sum(t.numel() * t.element_size() for t in tensors)
    ]
