# SPDX-License-Identifier: Apache-2.0
"""Merged weights against PEFT's own, and against sums by hand."""
from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from mmseg_mile.adapters.adapter import Adapter, lora_delta, merge_adapters

LORA = dict(r=2, lora_alpha=6, lora_dropout=0.0, use_rslora=False)
LAYERS = dict(
    linear=lambda: nn.Linear(5, 7),
    pointwise=lambda: nn.Conv2d(5, 7, 1),
    spatial=lambda: nn.Conv2d(5, 7, 3, stride=2, padding=2, dilation=2))


def adapter(value: float, scaling: float = 1.0, **norm: Tensor) -> Adapter:
    """Adapt layer ``a`` (2, 3) by ``value`` in each entry of ``B A``."""
    return Adapter(
        {
            'a.lora_A.weight': torch.ones(1, 3),
            'a.lora_B.weight': torch.full((2, 1), value)
        }, norm, scaling)


def base() -> dict[str, Tensor]:
    """Give layer ``a`` and a norm layer some values."""
    return {
        'a.weight': torch.ones(2, 3),
        'b.weight': torch.zeros(4),
        'n.weight': torch.tensor([1.0, 1.0]),
        'n.num_batches_tracked': torch.tensor(7)
    }


@pytest.mark.parametrize('use_rslora', [False, True])
@pytest.mark.parametrize('kind', LAYERS)
def test_merged_weight_is_that_of_peft(kind, use_rslora):
    net = nn.Sequential(LAYERS[kind]())
    weight = net[0].weight.detach().clone()
    config = LoraConfig(
        r=4, lora_alpha=6, use_rslora=use_rslora, target_modules=['0'])
    inject_adapter_in_model(config, net)
    down, up = net[0].lora_A['default'], net[0].lora_B['default']
    nn.init.normal_(up.weight)
    scaling = 6 / 4**0.5 if use_rslora else 6 / 4
    merged = merge_adapters({'0.weight': weight},
                            [(1.0,
                              Adapter(
                                  {
                                      '0.lora_A.weight': down.weight.detach(),
                                      '0.lora_B.weight': up.weight.detach()
                                  }, {}, scaling))])
    torch.testing.assert_close(merged['0.weight'],
                               weight + net[0].get_delta_weight('default'))


def test_delta_of_a_spatial_convolution_is_two_convolutions():
    down, up = torch.randn(2, 5, 3, 3), torch.randn(7, 2, 1, 1)
    x = torch.randn(1, 5, 8, 8)
    two = nn.functional.conv2d(nn.functional.conv2d(x, down), up)
    one = nn.functional.conv2d(x, lora_delta(down, up))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_mixture_is_the_weighted_sum_of_scaled_deltas():
    # 1 + 0.25 * 2 * 3 + 0.75 * 1 * 4
    merged = merge_adapters(base(), [(0.25, adapter(3., scaling=2.)),
                                     (0.75, adapter(4.))])
    assert torch.equal(merged['a.weight'], torch.full((2, 3), 5.5))


def test_only_changed_entries_are_returned():
    assert set(merge_adapters(base(), [(1.0, adapter(1.))])) == {'a.weight'}


def test_base_is_never_written_to():
    tensors = base()
    merge_adapters(tensors, [(0.5, adapter(1.)), (0.5, adapter(2.))])
    assert torch.equal(tensors['a.weight'], base()['a.weight'])


def test_half_precision_base_stays_in_half_precision():
    tensors = {k: v.half() for k, v in base().items()}
    merged = merge_adapters(tensors, [(1.0, adapter(1.))])
    assert merged['a.weight'].dtype == torch.half


def test_owned_norm_of_one_expert_replaces_that_of_the_base():
    norm = {'n.weight': torch.tensor([3.0, 5.0])}
    merged = merge_adapters(base(), [(1.0, adapter(0., **norm))])
    assert torch.equal(merged['n.weight'], norm['n.weight'])


def test_norms_are_averaged_and_an_expert_without_counts_as_the_base():
    norm = {'n.weight': torch.tensor([3.0, 5.0])}
    merged = merge_adapters(base(), [(0.25, adapter(0., **norm)),
                                     (0.75, adapter(0.))])
    # 0.25 * (3, 5) + 0.75 * (1, 1)
    assert torch.equal(merged['n.weight'], torch.tensor([1.5, 2.0]))


def test_counters_of_a_mixture_are_not_averaged():
    key = 'n.num_batches_tracked'
    merged = merge_adapters(base(), [
        (0.5, adapter(0., **{key: torch.tensor(9)})), (0.5, adapter(0.))
    ])  # yapf: disable
    assert merged[key].dtype == torch.long and int(merged[key]) == 9


def test_merged_weight_keeps_the_layout_of_the_base():
    conv = nn.Conv2d(6, 4, 1).to(memory_format=torch.channels_last)
    adapter = Adapter(
        {
            'lora_A.weight': torch.randn(2, 6, 1, 1),
            'lora_B.weight': torch.randn(4, 2, 1, 1)
        }, {}, 1.0)
    adapter.lora = {f'conv.{k}': v for k, v in adapter.lora.items()}
    merged = merge_adapters({'conv.weight': conv.weight}, [(1.0, adapter)])
    assert merged['conv.weight'].stride() == conv.weight.stride()


def test_single_expert_is_merged_bit_by_bit_as_its_own_delta():
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 5, 3, 3, generator=random)
    down = torch.randn(4, 5, 3, 3, generator=random)
    up = torch.randn(7, 4, 1, 1, generator=random)
    one = Adapter({'c.lora_A.weight': down, 'c.lora_B.weight': up}, {}, 1.5)
    merged = merge_adapters({'c.weight': weight}, [(1.0, one)])['c.weight']
    wanted = weight.clone().add_(lora_delta(down, up), alpha=1.5)
    assert torch.equal(merged, wanted)
