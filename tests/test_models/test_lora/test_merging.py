# SPDX-License-Identifier: Apache-2.0
"""Merged weights against PEFT's own, and against sums by hand."""
from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from mmseg_mile.models.lora import Adapter, lora_delta, merge_adapters

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


def test_clone_shares_no_tensor():
    first = adapter(1., **{'n.weight': torch.zeros(2)})
    second = first.clone()
    second.lora['a.lora_B.weight'].add_(1)
    second.norm['n.weight'].add_(1)
    assert torch.equal(first.lora['a.lora_B.weight'], torch.ones(2, 1))
    assert torch.equal(first.norm['n.weight'], torch.zeros(2))


def test_adapter_that_fits_is_accepted():
    adapter(1., **{'n.weight': torch.zeros(2)}).check_fit('day', base())


@pytest.mark.parametrize('change, named', [
    ({'a.lora_A.weight': torch.ones(1, 4)}, 'a'),
    ({'a.lora_A.weight': torch.ones(2, 3)}, 'a'),
    ({'x.lora_A.weight': torch.ones(1, 3),
      'x.lora_B.weight': torch.ones(2, 1)}, 'x'),
    ({'b.lora_A.weight': torch.ones(1, 3)}, 'b.lora_B.weight'),
    ({'b.lora_B.weight': torch.ones(1, 3)}, 'b.lora_B.weight'),
    ({'stray': torch.ones(1)}, 'stray'),
])  # yapf: disable
def test_adapter_of_another_shape_is_refused(change, named):
    wrong = adapter(1.)
    wrong.lora.update(change)
    with pytest.raises(ValueError, match=rf"'day' does not fit.*'{named}'"):
        wrong.check_fit('day', base())


def test_norm_of_another_shape_is_refused():
    wrong = adapter(1., **{'n.weight': torch.zeros(3)})
    with pytest.raises(ValueError, match="'n.weight'"):
        wrong.check_fit('day', base())


def test_adapter_without_tensors_is_refused():
    with pytest.raises(ValueError, match='it has no adapter'):
        Adapter({}, {}, 1.0).check_fit('day', base())


@pytest.mark.parametrize('targets, config, scaling', [
    (['a', 'b'], dict(r=1, lora_alpha=1), 1.0),
    (['a'], dict(r=2, lora_alpha=2), 1.0),
    (['a'], dict(r=1, lora_alpha=1), 2.0),
])  # yapf: disable
def test_other_settings_are_refused(targets, config, scaling):
    with pytest.raises(ValueError, match="'day' has 1 layers of rank"):
        adapter(1., scaling).check_settings('day', targets, config, False)


def test_norms_that_would_not_be_trained_are_refused():
    owner = adapter(1., **{'n.weight': torch.zeros(2)})
    owner.check_settings('day', ['a'], dict(r=1, lora_alpha=1), True)
    with pytest.raises(ValueError, match='1 norm tensors.*train_norm=False'):
        owner.check_settings('day', ['a'], dict(r=1, lora_alpha=1), False)


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


@pytest.mark.parametrize('lora, adapts, found', [
    (False, True, 'no'),
    (True, False, 'an'),
])  # yapf: disable
def test_adapter_must_be_there_or_not_as_asked(lora, adapts, found):
    base = dict(a=torch.zeros(2, 2))
    one = Adapter({}, {}, 1.0)
    if lora:
        one = Adapter(
            {
                'a.lora_A.weight': torch.zeros(1, 2),
                'a.lora_B.weight': torch.zeros(2, 1)
            }, {}, 1.0)
        base = {'a.weight': torch.zeros(2, 2)}
    one.check_fit('day', base, not adapts)
    one.check_fit('day', base, None)
    with pytest.raises(ValueError, match=f'it has {found} adapter'):
        one.check_fit('day', base, adapts)
