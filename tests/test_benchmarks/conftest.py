# SPDX-License-Identifier: Apache-2.0
"""Configs of networks that are measured in a blink."""
from __future__ import annotations

import copy

import pytest
from mmengine.config import Config
from tiny import TINY_MODEL

import mmseg_mile  # noqa: F401  registers the components
from mmseg_mile.benchmarks import Settings, prediction

TINY_MIT = dict(
    type='MixVisionTransformer',
    embed_dims=8,
    num_layers=[1, 1, 1, 1],
    num_heads=[1, 2, 2, 4],
    sr_ratios=[4, 2, 1, 1],
    drop_path_rate=0.3,
    init_cfg=dict(type='Pretrained', checkpoint='not_there.pth'))


@pytest.fixture(scope='session')
def cnn_config(tmp_path_factory):
    """File of a ResNet whose experts own norm layers."""
    path = tmp_path_factory.mktemp('benchmarks') / 'tiny_cnn.py'
    Config(dict(model=copy.deepcopy(TINY_MODEL))).dump(path)
    return str(path)


@pytest.fixture(scope='session')
def mit_config(tmp_path_factory):
    """File of a transformer with a checkpoint that does not exist."""
    model = copy.deepcopy(TINY_MODEL)
    model['backbone'].update(backbone=dict(TINY_MIT), train_norm=False)
    model['decode_head']['in_channels'] = [8, 16, 16, 32]
    path = tmp_path_factory.mktemp('benchmarks') / 'tiny_mit.py'
    Config(dict(model=model)).dump(path)
    return str(path)


@pytest.fixture(scope='session')
def settings():
    """Two small images, two experts, two rounds."""
    return Settings(size=64, batch=2, experts=2, rounds=2, warmup=0)


@pytest.fixture
def subject(mit_config, settings):
    """A transformer that holds two experts."""
    return prediction.make_subject(mit_config, settings)
