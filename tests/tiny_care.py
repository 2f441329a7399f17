# SPDX-License-Identifier: Apache-2.0
"""Tiny transformers with mixtures of experts."""
from __future__ import annotations

import copy
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from tiny import TINY_MIT, TINY_MODEL

from mmseg.registry import MODELS

BACKBONES: dict[str, dict[str, Any]] = dict(
    vit=dict(
        type='VisionTransformer',
        img_size=(32, 32),
        patch_size=8,
        embed_dims=16,
        num_layers=3,
        num_heads=2,
        out_indices=(0, 1, 2)),
    mit=TINY_MIT,
    swin=dict(
        type='SwinTransformer',
        embed_dims=8,
        depths=(1, 1, 1, 1),
        num_heads=(1, 2, 2, 4),
        window_size=4,
        drop_path_rate=0.0))
CHANNELS = dict(vit=[16] * 3, mit=[8, 16, 16, 32], swin=[8, 16, 32, 64])
PAPER = dict(
    mode='inline',
    perceptron='learned',
    relevance='entropy',
    pool=None,
    combine='sum',
    first_block=0,
    max_active=6)


def care_config(kind: str = 'vit', **backbone: Any) -> ConfigDict:
    """Config of a tiny model; ``init_from`` is of the model."""
    model = copy.deepcopy(TINY_MODEL)
    for key in ('embedder', 'gate'):
        del model[key]
    model['type'] = 'CaRESegmentor'
    model['init_from'] = backbone.pop('init_from', 'nearest')
    model['backbone'] = dict(
        type='BiLevelMoEBackbone', backbone=BACKBONES[kind], **backbone)
    model['decode_head'].update(
        in_channels=CHANNELS[kind], in_index=list(range(len(CHANNELS[kind]))))
    return ConfigDict(copy.deepcopy(model))


def care(kind: str = 'vit', **backbone: Any) -> Any:
    """A model; its weights are the same every time."""
    init_default_scope('mmseg')
    torch.manual_seed(7)
    model = MODELS.build(care_config(kind, **backbone))
    model.init_weights()
    return model
