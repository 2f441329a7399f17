# SPDX-License-Identifier: Apache-2.0
"""Models to be measured."""
from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmseg_mile.benchmarks.benchmark_models import (build_expert_segmentor,
                                                    build_stock,
                                                    calibrate_norms,
                                                    load_model_config,
                                                    stock_model_config)


def test_config_without_experts_is_refused(tmp_path, settings):
    path = tmp_path / 'plain.py'
    Config(dict(model=dict(type='EncoderDecoder'))).dump(path)
    with pytest.raises(ValueError, match="it is 'EncoderDecoder'"):
        load_model_config(path, settings)


def test_no_checkpoint_is_loaded(mit_config, settings):
    config = load_model_config(mit_config, settings)
    assert 'init_cfg' not in config.backbone.backbone
    build_expert_segmentor(config, settings)


def test_same_seed_same_base(cnn_config, settings):
    config = load_model_config(cnn_config, settings)
    first, second = (
        build_expert_segmentor(config, settings) for _ in range(2))
    assert first.backbone.fingerprint() == second.backbone.fingerprint()


def test_no_norm_layer_starts_with_zeros(cnn_config, settings):
    config = load_model_config(cnn_config, settings)
    model = build_expert_segmentor(config, settings)
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight > 0).all()


def test_stock_model_is_plain_mmseg(mit_config, settings):
    config = load_model_config(mit_config, settings)
    config.decode_head.type = 'LevelwiseSegformerHead'
    model = build_stock(stock_model_config(config), settings)
    for part in (model, model.backbone, model.decode_head):
        assert type(part).__module__.startswith('mmseg.')


def test_auxiliary_heads_are_for_training_only(mit_config, settings):
    config = load_model_config(mit_config, settings)
    config.auxiliary_head = dict(type='FCNHead')
    assert 'auxiliary_head' not in stock_model_config(config)
    assert 'auxiliary_head' in stock_model_config(config, auxiliary=True)


def test_calibrated_norm_has_the_statistics_of_its_input():
    norm = nn.BatchNorm2d(2).eval()
    x = 5 + 3 * torch.randn(8, 2, 4, 4)
    calibrate_norms(norm, lambda: norm(x))
    torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var,
                               x.transpose(0, 1).flatten(1).var(1))
    assert not norm.training
    assert norm.momentum == 0.1
