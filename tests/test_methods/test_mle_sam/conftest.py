# SPDX-License-Identifier: Apache-2.0
"""A tiny model of three sensors, and batches for it."""
from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData

import mmseg.models  # noqa: F401
import mmseg_mile  # noqa: F401
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg_mile.structures import Task

SENSORS = ('rgb', 'thermal', 'depth')
MODEL: dict[str, Any] = dict(
    type='SensorExpertSegmentor',
    data_preprocessor=dict(
        type='SensorPreProcessor',
        sensors=dict(
            rgb=dict(mean=[127.5] * 3, std=[64.0] * 3, bgr_to_rgb=True),
            thermal=dict(mean=[100.0], std=[64.0]),
            depth=dict(mean=[50.0], std=[64.0])),
        size_divisor=1),
    backbone=dict(
        type='LoRAExpertBackbone',
        backbone=dict(
            type='ResNetV1c',
            depth=18,
            stem_channels=4,
            base_channels=4,
            num_stages=2,
            strides=(1, 1),
            dilations=(1, 1),
            out_indices=(0, 1),
            norm_cfg=dict(type='BN')),
        lora=dict(r=2, lora_alpha=4),
        train_norm=True),
    router=dict(type='SensorRouter', in_channels=[4, 8]),
    decode_head=dict(
        type='FCNHead',
        in_channels=8,
        in_index=1,
        channels=8,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.0,
        norm_cfg=dict(type='BN'),
        align_corners=False,
        num_classes=19,
        loss_decode=dict(type='CrossEntropyLoss')),
    test_cfg=dict(mode='whole'))
TASK = Task(
    name='street',
    classes=('road', 'car', 'sky'),
    palette=((1, 2, 3), (4, 5, 6), (7, 8, 9)),
    train_dataset={},
    val_dataset={},
    sensors=SENSORS)


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A config with changes, whose keys have __ for a dot."""
    config = copy.deepcopy(base)
    for path, value in changes.items():
        *parents, last = path.split('__')
        inner = config
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    return config


@pytest.fixture
def build() -> Callable[..., Any]:
    """``build(**changes)``: the model, with disturbed norm statistics."""
    init_default_scope('mmseg')

    def make(**changes: Any) -> Any:
        return MODELS.build(ConfigDict(merged(MODEL, changes)))

    return make


def disturb(model: Any) -> None:
    """Let experts, norms and scorers of a learned task differ."""
    generator = torch.Generator().manual_seed(1)

    def noise(value: torch.Tensor, scale: float) -> torch.Tensor:
        return scale * torch.randn(value.shape, generator=generator)

    for name in model.backbone.experts.names:
        adapter = model.backbone.experts[name].clone()
        for value in adapter.lora.values():
            value += noise(value, 0.1)
        for value in adapter.norm.values():
            if value.is_floating_point():
                value += noise(value, 0.1).abs()
        model.backbone.experts[name] = adapter
    with torch.no_grad():
        for value in model.router.parameters():
            value += noise(value, 1.0)


@pytest.fixture
def learned(build: Callable[..., Any]) -> Callable[..., Any]:
    """``learned(**changes)``: a model whose experts differ, in eval mode."""

    def make(**changes: Any) -> Any:
        model = build(**changes)
        model.begin_task(TASK, [])
        model.end_task(TASK, [])
        disturb(model)
        return model.eval()

    return make


def batch_of(presence: Sequence[Sequence[bool]], seed: int = 0) -> dict:
    """Stacks of 16 x 24 pixels, one for each row of flags."""
    generator = torch.Generator().manual_seed(seed)
    inputs, samples = [], []
    for index, flags in enumerate(presence):
        inputs.append(
            torch.randint(
                0, 256, (5, 16, 24), dtype=torch.uint8, generator=generator))
        sample = SegDataSample(
            metainfo=dict(
                img_path=f'{index}.png',
                ori_shape=(16, 24),
                img_shape=(16, 24),
                sensor_present=dict(zip(SENSORS, flags))))
        labels = torch.randint(0, 3, (1, 16, 24), generator=generator)
        sample.gt_sem_seg = PixelData(data=labels)
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)
