# SPDX-License-Identifier: Apache-2.0
"""One expert as a checkpoint of plain MMSegmentation."""
from __future__ import annotations

import copy
from typing import Any, Dict

import torch
from mmengine.config import Config
from torch import Tensor

from mmseg_mile.models import ExpertSegmentor

_OWN_KEYS = ('gate', 'embedder', 'init_from', 'channels_last', 'keep_logits',
             'predict_dtype', 'auxiliary_head')
# Heads of ours and the stock ones with the same weights.
STOCK_HEADS = {'LevelwiseSegformerHead': 'SegformerHead'}


def export_expert(model: ExpertSegmentor, name: str) -> Dict[str, Any]:
    """A checkpoint that stock mmseg loads strictly.

    The adapter is merged into copies of the base's weights, so the exported
    model has no adapters and predicts what the expert predicts, up to
    rounding of the attention's stand-in.

    Args:
        model (ExpertSegmentor): Holds the expert.
        name (str): The expert.

    Returns:
        dict: ``state_dict`` under stock keys, and ``meta`` with the classes
        and palette where ``mmseg.apis.init_model`` looks for them.
    """
    head = model.heads[name]
    state: Dict[str, Tensor] = {}
    for key, value in merged_backbone(model, name).items():
        state[f'backbone.{key}'] = value.detach().cpu().contiguous()
    for key, value in head.state.items():
        state[f'decode_head.{key}'] = value.detach().cpu().contiguous()
    meta = dict(
        dataset_meta=dict(
            classes=list(head.classes),
            palette=[list(c) for c in head.palette]),
        expert=name,
        base_fingerprint=model.backbone.fingerprint())
    return dict(meta=meta, state_dict=state)


def merged_backbone(model: ExpertSegmentor, name: str) -> Dict[str, Tensor]:
    """The expert's backbone under the stock backbone's keys."""
    backbone = copy.deepcopy(model.backbone.backbone)
    tensors = dict(backbone.named_parameters())
    tensors.update(backbone.named_buffers())
    merged = model.backbone.experts.merged({name: 1.0}, tensors)
    with torch.no_grad():
        for key, value in merged.items():
            tensors[key].copy_(value)
    return backbone.state_dict()


def stock_config(model_config: Dict[str, Any], model: ExpertSegmentor,
                 name: str) -> Config:
    """The config of the exported model, for ``mmseg.apis.init_model``.

    Args:
        model_config (dict): The ``model`` field that built ``model``.
        model (ExpertSegmentor): Holds the expert.
        name (str): The expert.

    Returns:
        Config: With ``model`` and the default scope only.
    """
    stock = copy.deepcopy(dict(model_config))
    for key in _OWN_KEYS:
        stock.pop(key, None)
    stock['type'] = 'EncoderDecoder'
    stock['backbone'] = dict(stock['backbone']['backbone'])
    stock['backbone'].pop('init_cfg', None)
    head = dict(model.heads[name].config)
    head['type'] = STOCK_HEADS.get(head['type'], head['type'])
    stock['decode_head'] = head
    return Config(dict(default_scope='mmseg', model=stock))
