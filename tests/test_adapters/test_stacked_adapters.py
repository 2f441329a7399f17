# SPDX-License-Identifier: Apache-2.0
"""Many adapters in one product per layer, against the sum in float64."""
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmseg_mile.adapters.adapter import (Adapter, AdapterStack, lora_delta,
                                         merge_adapters)

BASE = {
    'fc.weight': torch.linspace(-1, 1, 4 * 6).view(4, 6),
    'point.weight': torch.linspace(-1, 1, 5 * 4).view(5, 4, 1, 1),
    'conv.weight': torch.linspace(-1, 1, 5 * 3 * 9).view(5, 3, 3, 3),
    'norm.weight': torch.linspace(0, 1, 4),
    'norm.bias': torch.linspace(-1, 0, 4)
}
LAYERS = ('fc', 'point', 'conv')
bounded = settings(
    max_examples=60, deadline=None, derandomize=True, database=None)


def adapter(rank: int,
            layers: tuple = LAYERS,
            scaling: float = 1.0,
            norm: bool = False,
            seed: int = 0) -> Adapter:
    """Draw an adapter of some layers of the base."""
    random = torch.Generator().manual_seed(seed)
    lora: dict[str, Tensor] = {}
    for layer in layers:
        outputs, *rest = BASE[f'{layer}.weight'].shape
        lora[f'{layer}.lora_A.weight'] = torch.randn(
            rank, *rest, generator=random)
        lora[f'{layer}.lora_B.weight'] = torch.randn(
            outputs, rank, *[1] * (len(rest) - 1), generator=random)
    own = {
        f'norm.{leaf}': torch.randn(4, generator=random)
        for leaf in ('weight', 'bias')
    }
    return Adapter(lora, own if norm else {}, scaling)


def summed(weights: list[float], adapters: list[Adapter]) -> dict[str, Tensor]:
    """One after the other, in float64."""
    merged: dict[str, Tensor] = {}
    for key in {f'{t}.weight' for a in adapters for t in a.targets()}:
        merged[key] = BASE[key].double()
        for weight, one in zip(weights, adapters):
            pair = [
                one.lora.get(key.replace('weight', f'lora_{x}.weight'))
                for x in 'AB'
            ]
            if pair[0] is not None:
                delta = lora_delta(pair[0].double(), pair[1].double())
                merged[key] = merged[key] + weight * one.scaling * delta
    for key in {k for a in adapters for k in a.norm}:
        merged[key] = sum((w * a.norm.get(key, BASE[key]).double()
                           for w, a in zip(weights, adapters)),
                          torch.zeros(4).double())
    return merged


def assert_near(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Compare to a few roundings of the largest value."""
    assert set(got) == set(wanted)
    for key, value in wanted.items():
        error = (got[key].double() - value).abs().max()
        assert got[key].dtype == BASE[key].dtype
        assert error <= 1e-6 * max(1.0, float(value.abs().max())), key


@st.composite
def mixtures(draw):
    """Two to six experts of any ranks, layers and signs."""
    count = draw(st.integers(2, 6))
    weights = [draw(st.integers(-8, 8)) / 8 for _ in range(count)]
    adapters = [
        adapter(
            draw(st.integers(1, 5)),
            tuple(draw(st.lists(st.sampled_from(LAYERS), unique=True))),
            draw(st.sampled_from((0.5, 1.0, 2.0))), draw(st.booleans()), index)
        for index in range(count)
    ]
    return weights, adapters


@bounded
@given(mixture=mixtures())
def test_product_is_the_sum_over_the_experts(mixture):
    weights, adapters = mixture
    stack = AdapterStack(adapters)
    wanted = summed(weights, adapters)
    assert_near(stack.merge(BASE, weights), wanted)
    assert_near(merge_adapters(BASE, list(zip(weights, adapters))), wanted)


def test_twenty_experts_are_summed_exactly():
    adapters = [adapter(8, scaling=2.0, norm=True, seed=i) for i in range(20)]
    weights = torch.linspace(1, 3, 20).softmax(0).tolist()
    assert_near(
        AdapterStack(adapters).merge(BASE, weights),
        summed(weights, adapters))


def test_other_weights_take_the_same_stack():
    adapters = [adapter(2, norm=True, seed=i) for i in range(3)]
    stack = AdapterStack(adapters)
    for weights in ([0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.5, 0.25, 0.25]):
        assert_near(stack.merge(BASE, weights), summed(weights, adapters))


def test_base_and_adapters_are_not_written_to():
    adapters = [adapter(2, norm=True, seed=i) for i in range(2)]
    own = [a.clone() for a in adapters]
    before = {k: v.clone() for k, v in BASE.items()}
    merged = AdapterStack(adapters).merge(BASE, [0.5, 0.5])
    for value in merged.values():
        value.zero_()
    assert all(torch.equal(BASE[k], before[k]) for k in BASE)
    for mine, theirs in zip(adapters, own):
        for part in ('lora', 'norm'):
            assert all(
                torch.equal(value,
                            getattr(theirs, part)[key])
                for key, value in getattr(mine, part).items())


@pytest.mark.parametrize('layer', ['conv', 'point'])
def test_layout_of_the_base_is_kept(layer):
    key = f'{layer}.weight'
    base = {key: BASE[key].to(memory_format=torch.channels_last)}
    adapters = [adapter(2, (layer, ), seed=i) for i in range(2)]
    merged = AdapterStack(adapters).merge(base, [0.5, 0.5])[key]
    assert merged.stride() == base[key].stride()
    assert_near({key: merged}, summed([0.5, 0.5], adapters))


def test_half_precision_base_takes_a_sum_in_float32():
    base = {'fc.weight': BASE['fc.weight'].half()}
    adapters = [adapter(2, ('fc', ), seed=i) for i in range(2)]
    merged = AdapterStack(adapters).merge(base, [0.5, 0.5])['fc.weight']
    assert merged.dtype == torch.half
    wanted = summed([0.5, 0.5], adapters)['fc.weight']
    torch.testing.assert_close(merged.double(), wanted, rtol=2e-3, atol=2e-3)


def test_adapters_in_half_precision_are_added_in_float32():
    adapters = [adapter(3, ('fc', ), seed=i) for i in range(4)]
    for one in adapters:
        one.lora = {k: v.half() for k, v in one.lora.items()}
    weights = [0.4, 0.3, 0.2, 0.1]
    assert_near(
        AdapterStack(adapters).merge(BASE, weights),
        summed(weights, adapters))


def test_memory_is_that_of_factors_and_norms():
    adapters = [adapter(3, ('fc', ), norm=True, seed=i) for i in range(2)]
    own = sum(a.num_bytes() for a in adapters)
    ranks = 2 * 3 * 8  # whose each is, in 64 bits
    assert AdapterStack(adapters).num_bytes() == own + ranks
