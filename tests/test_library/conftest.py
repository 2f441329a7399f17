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
    """``make(name, **changes)``: an expert with random tensors.

    ``parts`` and ``configs`` are merged with what there is, None drops one.
    """

    def build(name: str, **changes: Any) -> Expert:
        parts = dict(
            adapter={
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
            prototypes={'centroids': torch.randn(1, 4).double()})
        configs = dict(
            adapter=dict(
                r=2, lora_alpha=4, lora_dropout=0.0, use_rslora=False),
            head=dict(type='FCNHead', num_classes=2, in_index=(0, )))
        parts.update(changes.pop('parts', {}))
        configs.update(changes.pop('configs', {}))
        fields = dict(
            classes=('road', 'sky'),
            palette=((0, 0, 0), (10, 20, 30)),
            parts={
                k: v
                for k, v in parts.items() if v is not None
            },
            configs=configs,
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
    store.save(make('night', parts=dict(norm=None)))
    return store
