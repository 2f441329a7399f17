# SPDX-License-Identifier: Apache-2.0
"""An expert of two small layers."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmseg_mile.library.expert_store import ExpertStore
from mmseg_mile.structures import Expert

BASE = 'b' * 64


@pytest.fixture
def make() -> Callable[..., Expert]:
    """Make an expert with random tensors."""

    def build(name: str, **changes: Any) -> Expert:
        fields = dict(
            classes=('road', 'sky'),
            palette=((0, 0, 0), (10, 20, 30)),
            lora_config=dict(
                r=2, lora_alpha=4, lora_dropout=0.0, use_rslora=False),
            lora={
                'fc.lora_A.weight': torch.randn(2, 3),
                'fc.lora_B.weight': torch.randn(4, 2),
                'block.conv.lora_A.weight': torch.randn(2, 3, 3, 3),
                'block.conv.lora_B.weight': torch.randn(4, 2, 1, 1)
            },
            norm={
                'norm.weight': torch.randn(4),
                'norm.num_batches_tracked': torch.tensor(7)
            },
            head={'conv_seg.weight': torch.randn(2, 4, 1, 1)},
            head_config=dict(type='FCNHead', num_classes=2, in_index=(0, )),
            prototypes={'centroids': torch.randn(1, 4).double()},
            base_fingerprint=BASE,
            provenance=dict(seed=1))
        return Expert(name, **{**fields, **changes})

    return build


@pytest.fixture
def store(tmp_path: Path, make: Callable[..., Expert]) -> ExpertStore:
    """A library of 'day' and 'night'."""
    store = ExpertStore(tmp_path / 'library')
    store.save_base({'fc.weight': torch.randn(4, 3)}, BASE)
    store.save(make('day'))
    store.save(make('night', norm={}))
    return store
