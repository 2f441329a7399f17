# SPDX-License-Identifier: Apache-2.0
"""A SAN of random weights that fits in a test."""
from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope

from mmseg.registry import MODELS
from mmseg_mile.methods.semla.side_adapter_clip import SideAdapterCLIP

QUERIES, WIDTH, TEXT = 6, 32, 16
SMALL = dict(num_heads=2, mlp_ratio=2)
IMAGE_ENCODER = dict(
    SMALL,
    type='VisionTransformer',
    img_size=(32, 32),
    patch_size=8,
    patch_pad=0,
    embed_dims=WIDTH,
    num_layers=2,
    out_origin=True,
    out_indices=(0, 1),
    output_cls_token=True,
    pre_norm=True,
    act_cfg=dict(type='QuickGELU'),
    frozen_exclude=['pos_embed'])
TEXT_ENCODER = dict(
    SMALL,
    type='CLIPTextEncoder',
    templates=['a photo of a {}.', 'a {}.'],
    embed_dims=16,
    num_layers=2,
    output_dims=TEXT)
SAN_CFG = dict(
    clip_channels=WIDTH,
    embed_dims=16,
    patch_size=8,
    num_queries=QUERIES,
    fusion_index=[0, 1, 2],
    cfg_encoder=dict(SMALL, num_encode_layer=2),
    cfg_decoder=dict(
        num_heads=2,
        num_layers=1,
        embed_channels=8,
        mlp_channels=8,
        num_mlp=2,
        rescale=True))
MASKGEN_CFG = dict(
    SMALL,
    sos_token_num=QUERIES,
    num_layers=2,
    embed_dims=WIDTH,
    out_dims=TEXT,
    act_cfg=dict(type='QuickGELU'))
SAN = dict(
    type='SideAdapterCLIP',
    image_encoder=IMAGE_ENCODER,
    text_encoder=TEXT_ENCODER,
    san_cfg=SAN_CFG,
    maskgen_cfg=MASKGEN_CFG,
    deep_supervision_idxs=[1],
    encoder_resolution=0.5)
HEAD = dict(
    type='OpenVocabularyHead',
    in_channels=TEXT,
    num_classes=2,
    align_corners=False)
# Experts of it; the gate weighs them as SemLA does.
SEGMENTOR = dict(
    type='OpenVocabularyExpertSegmentor',
    backbone=dict(
        type='LoRAExpertBackbone', backbone=SAN, lora=dict(r=2, lora_alpha=2)),
    decode_head=HEAD,
    embedder=dict(
        type='FeatureStatisticsEmbedder', stages=(0, ), statistics=('mean', )),
    gate=dict(type='SemLAGate', relative=True, tau=1.0))


def build_san(**changes: Any) -> SideAdapterCLIP:
    """Build the network in eval mode; the same weights every time."""
    init_default_scope('mmseg')
    torch.manual_seed(3)
    network = MODELS.build(copy.deepcopy(ConfigDict({**SAN, **changes})))
    network.init_weights()
    # at the scale of trained weights, where layers differ visibly
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.mul_(2)
    return network.eval()


def stock_state(san: SideAdapterCLIP) -> dict[str, torch.Tensor]:
    """The weights under the keys of mmseg's ``MultimodalEncoderDecoder``."""
    ours = ('side_adapter_network.', 'rec_with_attnbias.')
    return {
        f'decode_head.{key}' if key.startswith(ours) else key: value.clone()
        for key, value in san.state_dict().items()
    }


def build_stock(san: SideAdapterCLIP, classes: Sequence[str]) -> Any:
    """Build mmseg's own model with the weights of ``san``."""
    init_default_scope('mmseg')
    cls_ce, mask_ce, dice = (dict(
        type=kind, loss_name=f'loss_{name}', loss_weight=weight)
                             for kind, name, weight in (('CrossEntropyLoss',
                                                         'cls_ce', 2.0),
                                                        ('CrossEntropyLoss',
                                                         'mask_ce', 5.0),
                                                        ('DiceLoss',
                                                         'mask_dice', 5.0)))
    cls_ce.update(class_weight=[1.0] * len(classes) + [0.1])
    mask_ce.update(use_sigmoid=True)
    dice.update(ignore_index=None, naive_dice=True, eps=1)
    head = dict(
        type='SideAdapterCLIPHead',
        num_classes=len(classes),
        san_cfg=dict(SAN_CFG, in_channels=3),
        maskgen_cfg=MASKGEN_CFG,
        deep_supervision_idxs=[1],
        train_cfg=MODELS.build(HEAD).train_cfg,
        align_corners=False,
        loss_decode=[cls_ce, mask_ce, dice])
    model = MODELS.build(
        ConfigDict(
            type='MultimodalEncoderDecoder',
            image_encoder=IMAGE_ENCODER,
            text_encoder=dict(TEXT_ENCODER, vocabulary=list(classes)),
            decode_head=head,
            encoder_resolution=0.5,
            test_cfg=dict(mode='whole')))
    model.load_state_dict(stock_state(san), strict=True)
    return model.eval()
