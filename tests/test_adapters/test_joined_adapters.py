# SPDX-License-Identifier: Apache-2.0
"""Adapters joined and cut, against sums and numpy's decomposition."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from mmseg_mile.adapters.adapter import (Adapter, Residual,
                                         concatenate_adapters, cut_adapter,
                                         lora_delta, total_residual)


def adapter(rank, scaling, layers=('fc', 'conv')):
    """Draw an adapter of a linear layer and a convolution."""
    shapes = dict(fc=((rank, 5), (7, rank)),
                  conv=((rank, 3, 3, 3), (4, rank, 1, 1)))  # yapf: disable
    lora = {}
    for layer in layers:
        for part, shape in zip('AB', shapes[layer]):
            lora[f'{layer}.lora_{part}.weight'] = torch.randn(shape)
    return Adapter(lora, {}, scaling)


def update(adapter, layer):
    """``s B A`` of a layer in float64."""
    down, up = (
        adapter.lora[f'{layer}.lora_{x}.weight'].double() for x in 'AB')
    return adapter.scaling * lora_delta(down, up)


def test_joined_update_is_the_weighted_sum_and_ranks_add():
    mixture = [(0.7, adapter(2, 1.5)), (0.2, adapter(3, 0.5)),
               (1.3, adapter(1, 2.0))]
    joined = concatenate_adapters(mixture)
    for layer in ('fc', 'conv'):
        wanted = sum(w * update(a, layer) for w, a in mixture)
        torch.testing.assert_close(
            update(joined, layer), wanted, rtol=0, atol=1e-6)
        assert joined.lora[f'{layer}.lora_A.weight'].shape[0] == 6
    assert joined.scaling == 1


def test_weights_that_are_powers_of_two_lose_no_bit():
    one = adapter(2, 1.0)
    joined = concatenate_adapters([(0.5, one)])
    assert torch.equal(update(joined, 'fc'), 0.5 * update(one, 'fc'))


def test_layer_that_one_lacks_is_the_others_alone_at_the_common_rank():
    small, whole = adapter(2, 1.0, ['fc']), adapter(3, 1.0)
    joined = concatenate_adapters([(1.0, small), (0.5, whole)])
    torch.testing.assert_close(
        update(joined, 'conv'), 0.5 * update(whole, 'conv'))
    assert {len(v) for k, v in joined.lora.items() if 'lora_A' in k} == {5}


def test_experts_without_any_layer_add_nothing():
    whole = adapter(3, 1.0)
    joined = concatenate_adapters([(0.5, whole), (0.5, Adapter({}, {}, 1.0))])
    assert joined.lora['fc.lora_A.weight'].shape == (3, 5)


@pytest.mark.parametrize('layer', ['fc', 'conv'])
def test_cut_update_and_residual_are_those_of_numpys_svd(layer):
    whole = adapter(4, 1.5)
    cut, residuals = cut_adapter(whole, 2)
    matrix = update(whole, layer).flatten(1).numpy()
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    best = u[:, :2] * s[:2] @ vh[:2]
    np.testing.assert_allclose(
        update(cut, layer).flatten(1).numpy(), best, atol=1e-5)
    assert cut.lora[f'{layer}.lora_A.weight'].shape[0] == 2
    lost = np.linalg.norm(matrix - best) / np.linalg.norm(matrix)
    assert residuals[layer].relative == pytest.approx(lost, rel=1e-6)
    assert lost > 0.05


def test_nothing_is_lost_at_the_full_rank():
    whole = adapter(3, 1.5)
    cut, residuals = cut_adapter(whole, 3)
    torch.testing.assert_close(
        update(cut, 'conv'), update(whole, 'conv'), rtol=0, atol=1e-5)
    assert residuals['conv'].lost == 0


def test_layer_smaller_than_the_rank_is_filled_with_zeros():
    tiny = Adapter(
        {
            'fc.lora_A.weight': torch.randn(6, 2),
            'fc.lora_B.weight': torch.randn(3, 6)
        }, {}, 1.0)
    cut, residuals = cut_adapter(tiny, 4)
    torch.testing.assert_close(
        update(cut, 'fc'), update(tiny, 'fc'), rtol=0, atol=1e-5)
    assert cut.lora['fc.lora_A.weight'].shape == (4, 2)
    assert residuals['fc'].lost == 0


def test_residual_of_all_layers_is_that_of_one_long_vector():
    layers = dict(a=Residual(3.0, 6.0), b=Residual(4.0, 8.0))
    assert total_residual(layers) == (5.0, 10.0)
    assert total_residual(layers).relative == 0.5


def test_update_of_zero_loses_nothing():
    assert Residual(0.0, 0.0).relative == 0
