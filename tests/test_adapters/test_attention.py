# SPDX-License-Identifier: Apache-2.0
"""The stand-ins for torch's and Swin's attention against the originals."""
from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from mmseg.models.backbones.swin import WindowMSA
from mmseg_mile.adapters.attention import (FusedWindowMSA,
                                           LinearMultiheadAttention,
                                           replace_attention)

# Shape legend: B images, L queries, S keys, C channels
B, L, S, C, HEADS = 2, 5, 7, 8, 2


class Block(nn.Module):
    """An attention inside a module, as in a backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = make_attention()

    def forward(self, x: Tensor) -> Tensor:
        """Attend to itself."""
        return self.attn(x, x, x)[0]


def make_attention(**options: object) -> nn.MultiheadAttention:
    """Make a small attention with all biases off zero."""
    attention = nn.MultiheadAttention(C, HEADS, **options).eval()
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    return attention


def assert_same(attention: nn.MultiheadAttention,
                num_keys: int = L,
                **masks: Tensor) -> None:
    """Compare the stand-in with the original on random tokens."""
    query, key, value = (torch.randn(B, n, C) for n in (L, num_keys, num_keys))
    if not attention.batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    wanted, _ = attention(query, key, value, **masks)
    got, weights = LinearMultiheadAttention(attention)(query, key, value,
                                                       **masks)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert weights is None


@pytest.mark.parametrize('batch_first', [True, False])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('num_keys', [L, S])
def test_output_is_that_of_the_original(batch_first, bias, num_keys):
    assert_same(make_attention(batch_first=batch_first, bias=bias), num_keys)


@pytest.mark.parametrize('batch_first', [True, False])
@pytest.mark.parametrize('mask', [
    torch.randn(L, S),
    torch.arange(S).expand(L, S) > 3,
    torch.randn(B * HEADS, L, S),
], ids=['added', 'hides keys', 'of each image and head'])  # yapf: disable
def test_mask_is_honoured(batch_first, mask):
    assert_same(make_attention(batch_first=batch_first), S, attn_mask=mask)


@pytest.mark.parametrize('mask', [None, torch.arange(S).expand(L, S) == 2])
@pytest.mark.parametrize('as_float', [True, False])
def test_padded_keys_are_hidden(as_float, mask):
    padding = torch.zeros(B, S, dtype=torch.bool)
    padding[0, -3:] = True
    if as_float:
        padding = torch.zeros(B, S).masked_fill(padding, float('-inf'))
        mask = mask if mask is None else torch.zeros(L, S).masked_fill(
            mask, float('-inf'))
    assert_same(make_attention(), S, key_padding_mask=padding, attn_mask=mask)


def test_gradients_are_those_of_the_original():
    attention = make_attention(batch_first=True)
    stand_in = LinearMultiheadAttention(attention)
    x = torch.randn(B, L, C)
    attention(x, x, x)[0].square().sum().backward()
    stand_in(x, x, x)[0].square().sum().backward()
    packed = torch.cat([
        getattr(stand_in, name).weight.grad
        for name in ('q_proj', 'k_proj', 'v_proj')
    ])
    torch.testing.assert_close(
        packed, attention.in_proj_weight.grad, rtol=1e-4, atol=1e-4)


def test_dropout_acts_in_training_only():
    attention = make_attention(dropout=0.5, batch_first=True)
    stand_in, x = LinearMultiheadAttention(attention), torch.randn(B, L, C)
    assert not stand_in.training
    torch.testing.assert_close(stand_in(x, x, x), stand_in(x, x, x))
    stand_in.train()
    assert not torch.equal(stand_in(x, x, x)[0], stand_in(x, x, x)[0])


@pytest.mark.parametrize('bias', [True, False])
def test_stock_state_goes_in_and_out_bit_for_bit(bias):
    attention = make_attention(bias=bias)
    model = nn.ModuleDict(dict(attn=make_attention(bias=bias)))
    replace_attention(model)
    checkpoint = {f'attn.{k}': v for k, v in attention.state_dict().items()}
    keys = list(checkpoint)
    model.load_state_dict(checkpoint, strict=True)
    assert list(checkpoint) == keys
    state = model.state_dict()
    assert set(state) == set(checkpoint)
    assert all(torch.equal(state[key], checkpoint[key]) for key in keys)


def test_checkpoint_without_the_attention_is_reported_missing():
    model = Block()
    replace_attention(model)
    with pytest.raises(RuntimeError, match='attn.q_proj.weight'):
        model.load_state_dict({}, strict=True)


def test_stock_state_goes_in_and_out_while_adapters_sit_in_it():
    model, other = Block(), Block()
    replace_attention(model)
    inject_adapter_in_model(
        LoraConfig(r=2, target_modules=['q_proj', 'v_proj', 'out_proj']),
        model)
    missing, unexpected = model.load_state_dict(
        other.state_dict(), strict=False)
    assert not unexpected and all('lora_' in key for key in missing)
    x = torch.randn(L, B, C)
    torch.testing.assert_close(model(x), other(x), rtol=1e-5, atol=1e-5)
    state = model.state_dict()
    stock = other.state_dict()
    assert all(torch.equal(state[key], stock[key]) for key in stock)
    assert all('lora_' in key for key in set(state) - set(stock))


def test_replacement_names_what_it_replaced():
    model = nn.Sequential(Block(), nn.Sequential(Block()))
    assert replace_attention(model) == ['0.attn', '1.0.attn']
    assert replace_attention(model) == []


@pytest.mark.parametrize('options', [
    dict(kdim=4), dict(vdim=4), dict(add_zero_attn=True),
    dict(add_bias_kv=True)
])  # yapf: disable
def test_variant_that_cannot_be_expressed_stays_in_the_model(options):
    attention = nn.MultiheadAttention(C, HEADS, **options)
    model = nn.Sequential(attention)
    assert replace_attention(model) == [] and model[0] is attention


# -- Swin's windows: W of them in an image, N tokens in each -----------------

SIDE, W = 4, 6
N = SIDE * SIDE


@pytest.fixture
def window() -> WindowMSA:
    attention = WindowMSA(C, HEADS, (SIDE, SIDE), qk_scale=0.7).eval()
    nn.init.normal_(attention.relative_position_bias_table)
    return attention


@pytest.mark.parametrize('mask', [
    None, torch.where(torch.rand(W, N, N) > 0.7, -100.0, 0.0)
], ids=['plain', 'shifted'])  # yapf: disable
def test_windows_attend_as_in_the_stock_module(window, mask):
    x = torch.randn(2 * W, N, C)
    torch.testing.assert_close(
        FusedWindowMSA(window)(x, mask), window(x, mask), rtol=1e-5, atol=1e-6)


def test_position_bias_gets_the_stock_gradient(window):
    x, fused = torch.randn(2, N, C), FusedWindowMSA(copy.deepcopy(window))
    for attention in (window, fused):
        attention(x).square().sum().backward()
    torch.testing.assert_close(
        fused.relative_position_bias_table.grad,
        window.relative_position_bias_table.grad,
        rtol=1e-4,
        atol=1e-5)


def test_layers_and_keys_of_a_window_are_the_stock_ones(window):
    fused = FusedWindowMSA(window)
    assert fused.qkv is window.qkv and fused.proj is window.proj
    assert list(fused.state_dict()) == list(window.state_dict())
    assert fused.relative_position_bias_table is (
        window.relative_position_bias_table)


def test_dropout_of_the_scores_is_kept():
    attention = WindowMSA(C, HEADS, (SIDE, SIDE), attn_drop_rate=0.5)
    fused, x = FusedWindowMSA(attention), torch.randn(2, N, C)
    assert not torch.equal(fused(x), fused(x))
    fused.eval()
    assert torch.equal(fused(x), fused(x))


def test_only_the_stock_window_itself_is_replaced(window):

    class Other(WindowMSA):
        """Computes something else, for all we know."""

    other = Other(C, HEADS, (SIDE, SIDE))
    model = nn.ModuleDict(dict(a=window, b=other))
    assert replace_attention(model) == ['a']
    assert isinstance(model['a'], FusedWindowMSA) and model['b'] is other
