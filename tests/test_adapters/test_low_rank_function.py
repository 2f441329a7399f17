# SPDX-License-Identifier: Apache-2.0
"""Every plan is the same function, with the gradients of autograd."""
from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from mmseg_mile.adapters.fast_layers import (ColumnProducts,
                                             ConvolutionProducts,
                                             LowRankFunction, LowRankPlan,
                                             RowProducts)

# Products, shape of x, shape of A at rank 2.
LAYOUTS = {
    'rows': (RowProducts(), (5, 4), (2, 4)),
    'columns': (ColumnProducts(), (2, 4, 3), (2, 4)),
    'convolution': (ConvolutionProducts((2, 2), (1, 1),
                                        (1, 1)), (1, 4, 5, 4), (2, 4, 3, 3)),
}
WAYS = list(itertools.product([True, False], repeat=2))


def draw(kind: str, dtype: torch.dtype = torch.double) -> list[Tensor]:
    """x, W, b, A, B; all but the constants require a gradient."""
    _, x, down = LAYOUTS[kind]
    tensors = [torch.randn(s) for s in (x, (3, *down[1:]), 3, down, (3, 2))]
    return [
        t.to(dtype).requires_grad_(i not in (1, 2))
        for i, t in enumerate(tensors)
    ]


def plan(kind: str, way: tuple[bool, bool]) -> LowRankPlan:
    """Merged or not, dense gradient or not."""
    return LowRankPlan(LAYOUTS[kind][0], 1.5, *way)


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('kind', LAYOUTS)
def test_gradients_are_those_of_finite_differences(kind, way):
    assert torch.autograd.gradcheck(LowRankFunction.apply,
                                    (*draw(kind), plan(kind, way)))


@pytest.mark.parametrize('kind', LAYOUTS)
def test_every_plan_gives_the_same_output(kind):
    tensors = draw(kind)
    merged, *others = (
        LowRankFunction.apply(*tensors, plan(kind, way)) for way in WAYS)
    for other in others:
        torch.testing.assert_close(other, merged)


@pytest.mark.parametrize('way', WAYS)
def test_gradients_add_up_over_two_backwards(way):
    tensors = draw('rows')
    for _ in range(2):
        LowRankFunction.apply(*tensors, plan('rows', way)).sum().backward()
    twice = tensors[3].grad.clone()
    tensors[3].grad = None
    LowRankFunction.apply(*tensors, plan('rows', way)).sum().backward()
    torch.testing.assert_close(twice, 2 * tensors[3].grad)


@pytest.mark.parametrize('way', WAYS)
def test_input_without_a_gradient_gets_none(way):
    x, *rest = draw('rows')
    x = x.detach()
    LowRankFunction.apply(x, *rest, plan('rows', way)).sum().backward()
    assert x.grad is None and rest[2].grad is not None


@pytest.mark.parametrize('way', WAYS)
def test_nothing_but_the_input_is_kept_for_backward(way):
    tensors, kept = draw('rows'), []
    with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.append(t) or t, lambda t: t):
        LowRankFunction.apply(*tensors, plan('rows', way))
    own = {t.data_ptr() for t in tensors}
    new = [t.shape for t in kept if t.data_ptr() not in own]
    # without a merge also A x, of rank 2
    assert new == ([] if way[0] else [(5, 2)])


@pytest.mark.parametrize('way', WAYS)
def test_half_precision_keeps_float32_parameters_and_their_gradients(way):
    tensors = draw('rows', torch.float32)
    low = [tensors[0].bfloat16(), *tensors[1:]]
    y = LowRankFunction.apply(*low, plan('rows', way))
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert tensors[3].grad.dtype == tensors[4].grad.dtype == torch.float32


@pytest.mark.parametrize('positions, merged', [(1000, True), (10, False)])
def test_merges_where_the_weight_is_small_against_the_activations(
        positions, merged):
    chosen = LowRankPlan.choose(RowProducts(), 1.0, torch.empty(64, 64), 8,
                                positions)
    assert chosen.merged == merged


@pytest.mark.parametrize('side, dense', [(32, True), (160, False)])
def test_dense_gradient_where_the_weight_is_hardly_wider_than_the_rank(
        side, dense):
    chosen = LowRankPlan.choose(RowProducts(), 1.0, torch.empty(side, side), 8,
                                1000)
    assert chosen.dense_gradient == dense
