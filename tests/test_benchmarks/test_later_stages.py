# SPDX-License-Identifier: Apache-2.0
"""Adapters behind the first stage."""
from __future__ import annotations

import re

import pytest

from mmseg_mile.benchmarks.benchmark_models import (build_expert_segmentor,
                                                    load_model_config)
from mmseg_mile.benchmarks.later_stages import later_stage_pattern


def chosen(path, settings):
    config = load_model_config(path, settings)
    pattern = later_stage_pattern(config, settings)
    everything = build_expert_segmentor(config, settings).backbone.targets
    config.backbone.lora.target_modules = pattern
    later = build_expert_segmentor(config, settings).backbone.targets
    return set(everything) - set(later), set(later)


def test_transformer_leaves_out_its_first_stage(mit_config, settings):
    first, later = chosen(mit_config, settings)
    assert first and all(n.startswith('layers.0.') for n in first)
    assert all(re.match(r'layers\.[123]\.', n) for n in later)


def test_cnn_leaves_out_stem_and_first_stage(cnn_config, settings):
    first, later = chosen(cnn_config, settings)
    assert {n.partition('.')[0] for n in first} == {'stem', 'layer1'}
    assert {n.partition('.')[0]
            for n in later} == {'layer2', 'layer3', 'layer4'}


def test_single_stage_is_refused(cnn_config, settings):
    config = load_model_config(cnn_config, settings)
    config.backbone.backbone.out_indices = (3, )
    with pytest.raises(ValueError, match='out_indices'):
        later_stage_pattern(config, settings)


def test_experts_without_adapters_are_refused(cnn_config, settings):
    config = load_model_config(cnn_config, settings)
    config.backbone.lora = None
    with pytest.raises(ValueError, match='lora is None: there is no adapter'):
        later_stage_pattern(config, settings)
