# SPDX-License-Identifier: Apache-2.0
"""Swin's attention and its fused stand-in."""
from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mmseg.models.backbones.swin import WindowMSA
from mmseg_mile.adapters.attention import (FusedWindowMSA, can_replace_window,
                                           replace_attention)

C, HEADS, SIDE, WINDOWS = 12, 3, 4, 6
N = SIDE * SIDE


@pytest.fixture
def stock():
    attention = WindowMSA(C, HEADS, (SIDE, SIDE), qk_scale=0.7).eval()
    nn.init.normal_(attention.relative_position_bias_table)
    return attention


def shift_mask():
    """A mask like that of shifted windows, one per window."""
    return torch.where(torch.rand(WINDOWS, N, N) > 0.7, -100.0, 0.0)


@pytest.mark.parametrize('mask', [None, shift_mask()], ids=['plain', 'shift'])
def test_output_is_that_of_the_stock_module(stock, mask):
    x = torch.randn(2 * WINDOWS, N, C)
    torch.testing.assert_close(
        FusedWindowMSA(stock)(x, mask), stock(x, mask), rtol=1e-5, atol=1e-6)


def test_position_bias_gets_the_stock_gradient(stock):
    x, fused = torch.randn(2, N, C), FusedWindowMSA(copy.deepcopy(stock))
    for attention in (stock, fused):
        attention(x).square().sum().backward()
    torch.testing.assert_close(
        fused.relative_position_bias_table.grad,
        stock.relative_position_bias_table.grad,
        rtol=1e-4,
        atol=1e-5)


def test_layers_and_keys_are_the_stock_ones(stock):
    fused = FusedWindowMSA(stock)
    assert fused.qkv is stock.qkv and fused.proj is stock.proj
    assert list(fused.state_dict()) == list(stock.state_dict())
    assert fused.relative_position_bias_table is (
        stock.relative_position_bias_table)


def test_projection_without_bias_stays_without():
    attention = WindowMSA(C, HEADS, (SIDE, SIDE), qkv_bias=False)
    assert FusedWindowMSA(attention).qkv.bias is None


def test_dropout_of_the_scores_is_kept():
    attention = WindowMSA(C, HEADS, (SIDE, SIDE), attn_drop_rate=0.5)
    fused, x = FusedWindowMSA(attention), torch.randn(2, N, C)
    assert not torch.equal(fused(x), fused(x))
    fused.eval()
    assert torch.equal(fused(x), fused(x))


def test_only_the_stock_class_itself_is_replaced(stock):

    class Other(WindowMSA):
        """Computes something else, for all we know."""

    other = Other(C, HEADS, (SIDE, SIDE))
    assert can_replace_window(stock) and not can_replace_window(other)
    model = nn.ModuleDict(dict(a=stock, b=other))
    assert replace_attention(model) == ['a']
    assert isinstance(model['a'], FusedWindowMSA) and model['b'] is other
