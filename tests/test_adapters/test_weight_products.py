# SPDX-License-Identifier: Apache-2.0
"""Each product against autograd, or against the plain formula."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmseg_mile.adapters.fast_layers import (ColumnProducts,
                                             ConvolutionProducts, RowProducts,
                                             WeightProducts)

# Products, shape of x, shape of W (3 outputs, 4 inputs).
LAYOUTS = {
    'rows': (RowProducts(), (6, 4), (3, 4)),
    'columns': (ColumnProducts(), (2, 4, 5), (3, 4)),
    'convolution': (ConvolutionProducts((2, 1), (1, 0),
                                        (1, 2)), (2, 4, 8, 9), (3, 4, 3, 2)),
    # two rows at the end that no kernel reaches
    'rest': (ConvolutionProducts((3, 3), (0, 0),
                                 (1, 1)), (1, 4, 7, 6), (3, 4, 2, 1)),
}


@pytest.fixture(params=LAYOUTS)
def layout(request) -> tuple[WeightProducts, Tensor, Tensor]:
    """Products of a layout, x and W."""
    products, *shapes = LAYOUTS[request.param]
    return products, *(
        torch.randn(s, dtype=torch.double, requires_grad=True) for s in shapes)


def test_gradient_by_the_input(layout):
    products, x, weight = layout
    y = products.apply(weight, x, None)
    g = torch.randn_like(y)
    wanted, = torch.autograd.grad(y, x, g)
    with torch.no_grad():
        got = products.input_gradient(weight, g, x.shape)
    torch.testing.assert_close(got, wanted)


def test_gradient_by_the_input_is_added(layout):
    products, x, weight = layout
    y = products.apply(weight, x, None)
    g, total = torch.randn_like(y), torch.ones_like(x)
    wanted, = torch.autograd.grad(y, x, g)
    with torch.no_grad():
        products.add_input_gradient_(total, weight, g)
    torch.testing.assert_close(total.detach(), wanted + 1)


def test_gradient_by_the_weight(layout):
    products, x, weight = layout
    y = products.apply(weight, x, None)
    g = torch.randn_like(y)
    wanted, = torch.autograd.grad(y, weight, g)
    with torch.no_grad():
        got = products.weight_gradient(g, x, weight.shape)
    torch.testing.assert_close(got, wanted)


def test_bias_is_added_per_output(layout):
    products, x, weight = layout
    bias = torch.arange(3.0).double()
    moved = products.apply(weight, x, bias) - products.apply(weight, x, None)
    outputs = moved.movedim(1, -1).reshape(-1, 3)
    torch.testing.assert_close(outputs, bias.expand_as(outputs))


@pytest.mark.parametrize('channels_last', [False, True])
def test_way_up_is_a_pointwise_map(layout, channels_last):
    products, x, weight = layout
    with torch.no_grad():
        y = products.apply(weight, x, None)
        if channels_last and y.dim() == 4:
            y = y.contiguous(memory_format=torch.channels_last)
    up = torch.randn(3, 2, dtype=torch.double, requires_grad=True)
    u = torch.randn(len(y), 2, *y.shape[2:]).double().requires_grad_()
    term = torch.einsum('or,br...->bo...', up, u)
    wanted_u, wanted_up = torch.autograd.grad(term, (u, up), y)
    with torch.no_grad():
        torch.testing.assert_close(products.up_input_gradient(up, y), wanted_u)
        torch.testing.assert_close(products.up_gradient(y, u), wanted_up)
        before = y.clone()
        products.add_up_(y, up, u, 0.5)
    torch.testing.assert_close(y, before + 0.5 * term.detach())
