# SPDX-License-Identifier: Apache-2.0
"""An adapter that starts as a mixture of others."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.adapters.adapter import Adapter, fused_adapter, lora_delta

CONFIG = dict(r=2, lora_alpha=4)
BASE = {'layer.weight': torch.zeros(5, 4), 'norm.bias': torch.zeros(3)}


def adapter_of(seed: int, rank: int = 2, zero: bool = False) -> Adapter:
    """Draw an adapter of one layer."""
    noise = torch.Generator().manual_seed(seed)
    up = torch.randn(5, rank, generator=noise)
    return Adapter(
        {
            'layer.lora_A.weight': torch.randn(rank, 4, generator=noise),
            'layer.lora_B.weight': torch.zeros_like(up) if zero else up
        }, {'norm.bias': torch.full((3, ), float(seed))}, 2.0)


def update(adapter: Adapter) -> torch.Tensor:
    """What it adds to the weight."""
    return adapter.scaling * lora_delta(*adapter.lora.values())


def test_single_adapter_is_copied():
    source = adapter_of(1)
    copied = fused_adapter([(1.0, source)], BASE, CONFIG)
    for key, value in source.lora.items():
        assert torch.equal(copied.lora[key], value)
        assert copied.lora[key].data_ptr() != value.data_ptr()


def test_update_is_the_best_of_its_rank():
    first, second = adapter_of(1), adapter_of(2)
    whole = 0.25 * update(first) + 0.75 * update(second)
    fused = fused_adapter([(0.25, first), (0.75, second)], BASE, CONFIG)
    u, s, vh = torch.linalg.svd(whole)
    torch.testing.assert_close(
        update(fused), u[:, :2] * s[:2] @ vh[:2], rtol=1e-4, atol=1e-5)
    assert s[2] > 0.1  # something had to go


def test_settings_are_those_of_the_config():
    fused = fused_adapter([(.5, adapter_of(1)), (.5, adapter_of(2))], BASE,
                          CONFIG)
    fused.check_settings('new', ['layer'], CONFIG, train_norm=True)
    torch.testing.assert_close(fused.norm['norm.bias'], torch.full((3, ), 1.5))


def test_ranks_that_the_sum_does_not_fill_can_be_trained():
    # the sum is zero: as a fresh adapter, A must be drawn for B to learn
    fused = fused_adapter([(.5, adapter_of(1, zero=True)),
                           (.5, adapter_of(2, zero=True))], BASE, CONFIG)
    down, up = fused.lora.values()
    assert not up.any()
    assert (down.norm(dim=1) > 0).all()


def test_half_filled_rank_keeps_the_update():
    thin = adapter_of(1)
    thin.lora['layer.lora_B.weight'][:, 1] = 0
    fused = fused_adapter([(.5, thin), (.5, adapter_of(2, zero=True))], BASE,
                          CONFIG)
    torch.testing.assert_close(
        update(fused), .5 * update(thin), rtol=1e-4, atol=1e-5)
    assert (fused.lora['layer.lora_A.weight'].norm(dim=1) > 1e-3).all()


@pytest.mark.parametrize('weights', [(1.0, 0.0), (0.3, 0.7)])
def test_same_random_state_gives_the_same_start(weights):
    sources = [adapter_of(1, zero=True), adapter_of(2, zero=True)]
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(fused_adapter(list(zip(weights, sources)), BASE, CONFIG))
    for key, value in drawn[0].lora.items():
        assert torch.equal(drawn[1].lora[key], value)
