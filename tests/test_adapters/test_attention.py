# SPDX-License-Identifier: Apache-2.0
"""The stand-in for ``nn.MultiheadAttention`` against the original."""
from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from mmseg_mile.adapters.attention import (LinearMultiheadAttention,
                                           can_replace, replace_attention)

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


def lay_out(x: Tensor, attention: nn.MultiheadAttention) -> Tensor:
    """Turn (B, L, C) to what the attention takes."""
    return x if attention.batch_first else x.transpose(0, 1)


def assert_same(attention: nn.MultiheadAttention,
                num_keys: int = L,
                **masks: Tensor) -> None:
    """Compare the stand-in with the original on random tokens."""
    query = lay_out(torch.randn(B, L, C), attention)
    key = lay_out(torch.randn(B, num_keys, C), attention)
    value = lay_out(torch.randn(B, num_keys, C), attention)
    wanted, _ = attention(query, key, value, **masks)
    got, weights = LinearMultiheadAttention(attention)(query, key, value,
                                                       **masks)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert weights is None


@pytest.mark.parametrize('batch_first', [True, False])
@pytest.mark.parametrize('bias', [True, False])
def test_output_is_that_of_the_original(batch_first, bias):
    assert_same(make_attention(batch_first=batch_first, bias=bias))


@pytest.mark.parametrize('batch_first', [True, False])
def test_keys_may_be_more_than_queries(batch_first):
    assert_same(make_attention(batch_first=batch_first), num_keys=S)


@pytest.mark.parametrize('batch_first', [True, False])
def test_float_mask_is_added(batch_first):
    assert_same(
        make_attention(batch_first=batch_first),
        S,
        attn_mask=torch.randn(L, S))


def test_bool_mask_hides_keys():
    mask = torch.rand(L, S) < 0.4
    mask[:, 0] = False  # a query that sees nothing has no output
    assert_same(make_attention(), S, attn_mask=mask)


def test_mask_of_each_image_and_head_is_honoured():
    assert_same(make_attention(), S, attn_mask=torch.randn(B * HEADS, L, S))


@pytest.mark.parametrize('as_float', [True, False])
def test_padded_keys_are_hidden(as_float):
    padding = torch.zeros(B, S, dtype=torch.bool)
    padding[0, -3:] = True
    if as_float:
        padding = torch.zeros(B, S).masked_fill(padding, float('-inf'))
    assert_same(make_attention(batch_first=True), S, key_padding_mask=padding)


def test_both_masks_work_together():
    padding = torch.zeros(B, S, dtype=torch.bool)
    padding[1, 4:] = True
    mask = torch.zeros(L, S, dtype=torch.bool)
    mask[:, 2] = True
    assert_same(make_attention(), S, attn_mask=mask, key_padding_mask=padding)


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
    torch.testing.assert_close(stand_in(x, x, x), stand_in(x, x, x))
    stand_in.train()
    assert not torch.equal(stand_in(x, x, x)[0], stand_in(x, x, x)[0])


@pytest.mark.parametrize('bias', [True, False])
def test_state_dict_has_the_stock_keys_and_values(bias):
    attention = make_attention(bias=bias)
    state = LinearMultiheadAttention(attention).state_dict()
    stock = attention.state_dict()
    assert set(state) == set(stock)
    assert all(torch.equal(state[key], stock[key]) for key in stock)


def test_stock_checkpoint_goes_in_and_out_bit_for_bit():
    model, checkpoint = Block(), Block().state_dict()
    replace_attention(model)
    model.load_state_dict(checkpoint, strict=True)
    state = model.state_dict()
    assert set(state) == set(checkpoint)
    assert all(torch.equal(state[k], checkpoint[k]) for k in checkpoint)


def test_loading_leaves_the_given_state_dict_alone():
    model, checkpoint = Block(), Block().state_dict()
    replace_attention(model)
    keys = list(checkpoint)
    model.load_state_dict(checkpoint)
    assert list(checkpoint) == keys


def test_checkpoint_without_the_attention_is_reported_missing():
    model = Block()
    replace_attention(model)
    with pytest.raises(RuntimeError, match='attn.q_proj.weight'):
        model.load_state_dict({}, strict=True)


def test_stock_checkpoint_loads_while_adapters_sit_in_it():
    model, other = Block(), Block()
    replace_attention(model)
    inject_adapter_in_model(
        LoraConfig(r=2, target_modules=['q_proj', 'v_proj', 'out_proj']),
        model)
    missing, unexpected = model.load_state_dict(
        other.state_dict(), strict=False)
    assert not unexpected
    assert all('lora_' in key for key in missing)
    x = torch.randn(L, B, C)
    torch.testing.assert_close(model(x), other(x), rtol=1e-5, atol=1e-5)


def test_state_dict_packs_the_base_while_adapters_sit_in_it():
    model = Block()
    stock = model.state_dict()
    replace_attention(model)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=['k_proj']), model)
    state = model.state_dict()
    assert all(torch.equal(state[key], stock[key]) for key in stock)
    assert all('lora_' in key for key in set(state) - set(stock))


def test_replacement_names_what_it_replaced():
    model = nn.Sequential(Block(), nn.Sequential(Block()))
    assert replace_attention(model) == ['0.attn', '1.0.attn']
    assert replace_attention(model) == []


def test_mode_of_the_original_is_kept():
    assert not LinearMultiheadAttention(make_attention()).training


@pytest.mark.parametrize('options', [
    dict(kdim=4), dict(vdim=4), dict(add_zero_attn=True),
    dict(add_bias_kv=True)
])  # yapf: disable
def test_variant_that_cannot_be_expressed_is_refused(options):
    attention = nn.MultiheadAttention(C, HEADS, **options)
    assert not can_replace(attention)
    with pytest.raises(ValueError, match='cannot be rebuilt'):
        LinearMultiheadAttention(attention)


def test_variant_that_cannot_be_expressed_stays_in_the_model():
    model = nn.Sequential(nn.MultiheadAttention(C, HEADS, kdim=4))
    assert replace_attention(model) == []
    assert isinstance(model[0], nn.MultiheadAttention)
