# SPDX-License-Identifier: Apache-2.0
"""The tensors of an expert, and sums of several against float64."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmseg_mile.adapters.adapter import (Adapter, AdapterStack, NormStack,
                                         Residual, concatenate_adapters,
                                         cut_adapter, fused_adapter,
                                         lora_delta, total_residual)

BASE = {
    'fc.weight': torch.linspace(-1, 1, 4 * 6).view(4, 6),
    'point.weight': torch.linspace(-1, 1, 5 * 4).view(5, 4, 1, 1),
    'conv.weight': torch.linspace(-1, 1, 5 * 3 * 9).view(5, 3, 3, 3),
    'norm.weight': torch.linspace(0, 1, 4),
    'norm.bias': torch.linspace(-1, 0, 4),
    'norm.num_batches_tracked': torch.tensor(7)
}
LAYERS = ('fc', 'point', 'conv')


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


def update(adapter: Adapter, layer: str) -> Tensor:
    """``s B A`` of a layer in float64; zero where it has no adapter."""
    if layer not in adapter.targets():
        return torch.zeros_like(BASE[f'{layer}.weight']).double()
    down, up = (factor.double() for factor in adapter.factors(layer))
    return adapter.scaling * lora_delta(down, up)


def summed(weights: list[float], adapters: list[Adapter]) -> dict[str, Tensor]:
    """``W + sum_i w_i s_i B_i A_i``, one after the other, in float64."""
    merged = {
        f'{layer}.weight':
        BASE[f'{layer}.weight'].double() +
        sum(w * update(a, layer) for w, a in zip(weights, adapters))
        for layer in {t
                      for a in adapters
                      for t in a.targets()}
    }
    for key in {k for a in adapters for k in a.norm}:
        merged[key] = sum(
            w * a.norm.get(key, BASE[key]).double()
            for w, a in zip(weights, adapters)) + torch.zeros(4).double()
    return merged


def assert_near(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Compare to a few roundings of the largest value."""
    assert set(got) == set(wanted)
    for key, value in wanted.items():
        error = (got[key].double() - value).abs().max()
        assert got[key].dtype == BASE[key].dtype
        assert error <= 1e-6 * max(1.0, float(value.abs().max())), key


# -- one adapter -------------------------------------------------------------


def test_clone_shares_no_tensor():
    first = adapter(2, norm=True)
    second = first.clone()
    for mine, theirs in ((first.lora, second.lora), (first.norm, second.norm)):
        for key, value in mine.items():
            assert torch.equal(theirs[key], value)
            assert theirs[key].data_ptr() != value.data_ptr()


@pytest.mark.parametrize('change, named', [
    (dict(lora={'fc.lora_A.weight': torch.ones(2, 5)}), "'fc'"),
    (dict(lora={'fc.lora_A.weight': torch.ones(3, 6)}), "'fc'"),
    (dict(lora={'x.lora_A.weight': torch.ones(1, 3),
                'x.lora_B.weight': torch.ones(2, 1)}), "'x'"),
    (dict(lora={'b.lora_A.weight': torch.ones(1, 3)}), "'b.lora_B.weight'"),
    (dict(lora={'b.lora_B.weight': torch.ones(1, 3)}), "'b.lora_B.weight'"),
    (dict(lora={'stray': torch.ones(1)}), "'stray'"),
    (dict(norm={'norm.bias': torch.ones(3)}), "'norm.bias'"),
])  # yapf: disable
def test_tensors_that_do_not_fit_the_base_are_refused(change, named):
    wrong = adapter(2, norm=True)
    wrong.check_fit('day', BASE)
    for part, tensors in change.items():
        getattr(wrong, part).update(tensors)
    with pytest.raises(ValueError, match=rf"'day' does not fit.*{named}"):
        wrong.check_fit('day', BASE)


@pytest.mark.parametrize('layers, adapts, found', [
    ((), True, 'no'),
    (LAYERS, False, 'an'),
])  # yapf: disable
def test_adapter_must_be_there_or_not_as_asked(layers, adapts, found):
    one = adapter(2, layers)
    one.check_fit('day', BASE, not adapts)
    one.check_fit('day', BASE, None)
    with pytest.raises(ValueError, match=f'it has {found} adapter'):
        one.check_fit('day', BASE, adapts)


@pytest.mark.parametrize('targets, config, train_norm', [
    (['fc', 'conv'], dict(r=2, lora_alpha=2), True),
    (['fc'], dict(r=3, lora_alpha=3), True),
    (['fc'], dict(r=2, lora_alpha=4), True),
    (['fc'], dict(r=2, lora_alpha=2), False),
])  # yapf: disable
def test_training_on_with_other_settings_is_refused(targets, config,
                                                    train_norm):
    one = adapter(2, ('fc', ), norm=True)
    one.check_settings('day', ['fc'], dict(r=2, lora_alpha=2), True)
    with pytest.raises(
            ValueError, match=r"'day' has 1 layers of rank \[2\], scaling 1"):
        one.check_settings('day', targets, config, train_norm)


# -- merged weights ----------------------------------------------------------


@pytest.mark.parametrize('use_rslora', [False, True])
@pytest.mark.parametrize('layer', [
    nn.Linear(5, 7),
    nn.Conv2d(5, 7, 1),
    nn.Conv2d(5, 7, 3, stride=2, padding=2, dilation=2)
])  # yapf: disable
def test_merged_weight_is_that_of_peft(layer, use_rslora):
    net, weight = nn.Sequential(layer), layer.weight.detach().clone()
    config = LoraConfig(
        r=4, lora_alpha=6, use_rslora=use_rslora, target_modules=['0'])
    inject_adapter_in_model(config, net)
    nn.init.normal_(net[0].lora_B['default'].weight)
    one = Adapter(
        {
            f'0.lora_{x}.weight':
            getattr(net[0], f'lora_{x}')['default'].weight.detach()
            for x in 'AB'
        }, {}, 6 / 4**0.5 if use_rslora else 6 / 4)
    merged = AdapterStack([one]).merge({'0.weight': weight}, [1.0])
    torch.testing.assert_close(merged['0.weight'],
                               weight + net[0].get_delta_weight('default'))


def test_mixture_is_the_weighted_sum_of_scaled_deltas():
    # B A has 2 in each entry: 1 + 0.25 * 3 * 2 + 0.75 * 1 * 2
    lora = {'a.lora_A.weight': torch.ones(2, 3),
            'a.lora_B.weight': torch.ones(4, 2)}  # yapf: disable
    stack = AdapterStack([Adapter(lora, {}, 3.0), Adapter(lora, {}, 1.0)])
    base = {'a.weight': torch.ones(4, 3), 'b.weight': torch.zeros(4)}
    merged = stack.merge(base, [0.25, 0.75])
    assert set(merged) == {'a.weight'}
    assert torch.equal(merged['a.weight'], torch.full((4, 3), 4.0))


@st.composite
def mixtures(draw):
    """One to six experts of any ranks, layers and signs."""
    count = draw(st.integers(1, 6))
    adapters = [
        adapter(
            draw(st.integers(1, 5)),
            tuple(draw(st.lists(st.sampled_from(LAYERS), unique=True))),
            draw(st.sampled_from((0.5, 1.0, 2.0))), draw(st.booleans()), index)
        for index in range(count)
    ]
    if count == 1:
        return [1.0], adapters
    return [draw(st.integers(-8, 8)) / 8 for _ in range(count)], adapters


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(mixture=mixtures())
def test_product_of_stacked_factors_is_the_sum_over_the_experts(mixture):
    weights, adapters = mixture
    stack = AdapterStack(adapters)
    # the same stack takes other weights
    for given_weights in (weights, weights[::-1]):
        assert_near(
            stack.merge(BASE, given_weights), summed(given_weights, adapters))


@pytest.mark.parametrize('count', [1, 2])
def test_base_and_adapters_are_not_written_to(count):
    adapters = [adapter(2, seed=i) for i in range(count)]
    own = [a.clone() for a in adapters]
    before = {k: v.clone() for k, v in BASE.items()}
    for value in AdapterStack(adapters).merge(BASE, [0.5] * count).values():
        value.zero_()
    assert all(torch.equal(BASE[k], before[k]) for k in BASE)
    assert all(
        torch.equal(mine.lora[k], theirs.lora[k])
        for mine, theirs in zip(adapters, own) for k in mine.lora)


@pytest.mark.parametrize('count', [1, 2])
@pytest.mark.parametrize('layer', ['conv', 'point'])
def test_layout_of_the_base_is_kept(layer, count):
    key = f'{layer}.weight'
    base = {key: BASE[key].to(memory_format=torch.channels_last)}
    adapters = [adapter(2, (layer, ), seed=i) for i in range(count)]
    merged = AdapterStack(adapters).merge(base, [0.5] * count)
    assert merged[key].stride() == base[key].stride()
    assert_near(merged, summed([0.5] * count, adapters))


def test_half_precision_is_summed_in_float32():
    adapters = [adapter(3, ('fc', ), seed=i) for i in range(4)]
    for one in adapters:
        one.lora = {k: v.half() for k, v in one.lora.items()}
    weights = [0.4, 0.3, 0.2, 0.1]
    stack, wanted = AdapterStack(adapters), summed(weights, adapters)
    assert_near(stack.merge(BASE, weights), wanted)
    half = stack.merge({'fc.weight': BASE['fc.weight'].half()}, weights)
    assert half['fc.weight'].dtype == torch.half
    torch.testing.assert_close(
        half['fc.weight'].double(), wanted['fc.weight'], rtol=2e-3, atol=2e-3)


class MadeTensors(TorchFunctionMode):
    """Counts tensors made of numbers: each is a copy to a GPU."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func in (Tensor.new_tensor, torch.tensor)
        return func(*args, **(kwargs or {}))


def test_weights_become_a_tensor_once_for_all_layers_and_once_for_norms():
    stack = AdapterStack([adapter(2, norm=True, seed=i) for i in range(3)])
    with MadeTensors() as made:
        stack.merge(BASE, [0.5, 0.3, 0.2])
    assert made.count == 2 < len(LAYERS)


def test_memory_is_that_of_factors_and_norms():
    adapters = [adapter(3, norm=True, seed=i) for i in range(2)]
    assert AdapterStack(adapters).num_bytes() == sum(a.num_bytes()
                                                     for a in adapters)


# -- norm layers -------------------------------------------------------------


def test_norms_are_averaged_and_the_base_stands_in():
    # 'weight' is the first's and the third's, 'bias' the second's alone
    base = {'weight': torch.ones(2), 'bias': torch.tensor([2.0, 4.0])}
    norms = [{'weight': torch.tensor([5.0, 1.0])},
             {'bias': torch.tensor([4.0, 0.0])},
             {'weight': torch.tensor([9.0, 1.0])}]  # yapf: disable
    mean = NormStack(norms).mean(base, [0.5, 0.25, 0.25])
    # 0.5 * 5 + 0.25 * 1 + 0.25 * 9, 0.75 * 2 + 0.25 * 4
    assert torch.equal(mean['weight'], torch.tensor([5.0, 1.0]))
    assert torch.equal(mean['bias'], torch.tensor([2.5, 3.0]))


def test_norms_of_a_single_expert_are_its_own():
    own = adapter(1, norm=True).norm
    mean = NormStack([own]).mean(BASE, [1.0])
    assert all(torch.equal(mean[key], value) for key, value in own.items())


def test_counters_are_not_averaged():
    key = 'norm.num_batches_tracked'
    for norms in ([{key: torch.tensor(9)}, {}], [{}, {key: torch.tensor(9)}]):
        mean = NormStack(norms).mean(BASE, [0.5, 0.5])
        assert mean[key].dtype == torch.long and int(mean[key]) == 9


# -- one adapter of several --------------------------------------------------


def test_concatenated_update_is_the_weighted_sum_and_ranks_add():
    mixture = [(0.7, adapter(2, scaling=1.5)),
               (0.2, adapter(3, ('fc', ), 0.5, seed=1)),
               (1.3, adapter(1, scaling=2.0, seed=2)),
               (9.0, adapter(0, ()))]  # yapf: disable
    joined = concatenate_adapters(mixture)
    assert joined.scaling == 1 and joined.norm == {}
    joined.check_fit('joined', BASE)
    for layer in LAYERS:
        wanted = sum(w * update(a, layer) for w, a in mixture)
        torch.testing.assert_close(
            update(joined, layer), wanted, rtol=0, atol=2e-6)
        # zeros where the second has no adapter
        assert len(joined.factors(layer)[0]) == 6


@pytest.mark.parametrize('layer', LAYERS)
def test_cut_update_and_residual_are_those_of_numpys_svd(layer):
    whole = adapter(4, scaling=1.5)
    cut, residuals = cut_adapter(whole, 2)
    matrix = update(whole, layer).flatten(1).numpy()
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    best = u[:, :2] * s[:2] @ vh[:2]
    np.testing.assert_allclose(
        update(cut, layer).flatten(1).numpy(), best, atol=1e-5)
    assert cut.ranks() == [2]
    cut.check_fit('cut', BASE)
    lost = np.linalg.norm(matrix - best) / np.linalg.norm(matrix)
    assert residuals[layer].relative == pytest.approx(lost, rel=1e-6)
    assert lost > 0.05


def test_nothing_is_lost_at_the_full_rank_or_beyond():
    whole = adapter(4, scaling=1.5)
    for rank in (4, 5):
        cut, residuals = cut_adapter(whole, rank)
        assert cut.ranks() == [rank]
        for layer in LAYERS:
            torch.testing.assert_close(
                update(cut, layer), update(whole, layer), rtol=0, atol=1e-5)
            assert residuals[layer].lost < 1e-12


def test_residual_of_all_layers_is_that_of_one_long_vector():
    layers = dict(a=Residual(3.0, 6.0), b=Residual(4.0, 8.0))
    assert total_residual(layers) == (5.0, 10.0)
    assert total_residual(layers).relative == 0.5
    assert Residual(0.0, 0.0).relative == 0


# -- the adapter that a task starts from -------------------------------------

CONFIG = dict(r=2, lora_alpha=4)


def zero(seed: int) -> Adapter:
    """A fresh adapter."""
    fresh = adapter(2, ('fc', ), 2.0, seed=seed)
    fresh.lora['fc.lora_B.weight'].zero_()
    return fresh


def test_start_from_one_adapter_is_a_copy():
    source = adapter(2)
    copied = fused_adapter([(1.0, source)], BASE, CONFIG)
    for key, value in source.lora.items():
        assert torch.equal(copied.lora[key], value)
        assert copied.lora[key].data_ptr() != value.data_ptr()


def test_start_from_several_is_the_best_of_the_rank():
    first, second = (
        adapter(2, ('fc', ), 2.0, norm=True, seed=i) for i in (1, 2))
    mixture = [(0.25, first), (0.75, second)]
    fused = fused_adapter(mixture, BASE, CONFIG)
    u, s, vh = torch.linalg.svd(sum(w * update(a, 'fc') for w, a in mixture))
    torch.testing.assert_close(
        update(fused, 'fc'), u[:, :2] * s[:2] @ vh[:2], rtol=1e-4, atol=1e-5)
    assert s[2] > 0.1  # something had to go
    fused.check_settings('new', ['fc'], CONFIG, train_norm=True)
    torch.testing.assert_close(
        fused.norm['norm.bias'],
        0.25 * first.norm['norm.bias'] + 0.75 * second.norm['norm.bias'])


def test_ranks_that_the_sum_does_not_fill_can_be_trained():
    # as in a fresh adapter, A must be drawn for B to learn
    thin = zero(1)
    thin.lora['fc.lora_B.weight'][:, 0] = 1
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(fused_adapter([(.5, thin), (.5, zero(2))], BASE, CONFIG))
    down, up = drawn[0].factors('fc')
    assert (down.norm(dim=1) > 1e-3).all()
    torch.testing.assert_close(
        update(drawn[0], 'fc'), .5 * update(thin, 'fc'), rtol=1e-4, atol=1e-5)
    assert torch.equal(drawn[1].factors('fc')[0], down)
