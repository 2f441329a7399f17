# SPDX-License-Identifier: Apache-2.0
"""A small CNN with experts."""
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import mmseg.models  # noqa: F401
from mmseg_mile.adapters.lora_expert_backbone import LoRAExpertBackbone


@pytest.fixture
def resnet() -> dict:
    """Config of a ResNet of two small stages, one of them dilated."""
    return dict(
        type='ResNetV1c',
        depth=18,
        stem_channels=4,
        base_channels=4,
        num_stages=2,
        strides=(1, 1),
        dilations=(1, 2),
        out_indices=(0, 1))


@pytest.fixture
def make(resnet: dict) -> Callable[..., LoRAExpertBackbone]:
    """Wrap the small CNN; the same weights every time."""

    def build(**options: object) -> LoRAExpertBackbone:
        torch.manual_seed(1)
        options = {'lora': dict(r=2, lora_alpha=4), **options}
        return LoRAExpertBackbone({
            **resnet,
            **options.pop('change', {})
        }, **options).eval()

    return build


@pytest.fixture
def learned() -> Callable[..., None]:
    """Add experts that differ from the base and from one another."""

    def add(backbone: LoRAExpertBackbone, *names: str) -> None:
        for name in names:
            backbone.add_expert(name)
            adapter = backbone.experts[name].clone()
            for value in (*adapter.lora.values(), *adapter.norm.values()):
                if value.is_floating_point():
                    value.add_(torch.rand_like(value) * 0.1)
            backbone.experts[name] = adapter

    return add
