# SPDX-License-Identifier: Apache-2.0
"""Attention's adapters between PEFT's packed form and ours."""
from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from mmseg_mile.library.peft_folder import (Pair, attentions, out_proj_count,
                                            pack_pairs, unpack_base,
                                            unpack_pairs)

PARTS = ('q_proj', 'k_proj', 'v_proj', 'out_proj')


@pytest.fixture
def base():
    """State dict of an attention of width 4 beside a linear layer."""
    return nn.ModuleDict(
        dict(attn=nn.MultiheadAttention(4, 2), fc=nn.Linear(4,
                                                            4))).state_dict()


def pair(rank=2, scaling=2.0, outputs=4):
    return Pair(torch.randn(rank, 4), torch.randn(outputs, rank), scaling)


def update(pair):
    return pair.scaling * pair.up @ pair.down


def assert_equal(mine, theirs):
    assert set(mine) == set(theirs)
    for name, one in mine.items():
        assert torch.equal(one.down, theirs[name].down), name
        assert torch.equal(one.up, theirs[name].up), name
        assert one.scaling == theirs[name].scaling


def test_attentions_are_found_by_their_packed_weight(base):
    assert attentions(base) == ['attn']


def test_base_is_unpacked_into_the_layers_that_we_have(base):
    unpacked = unpack_base(base)
    assert set(unpacked) == {
        f'{layer}.{kind}'
        for layer in ('fc', *(f'attn.{part}' for part in PARTS))
        for kind in ('weight', 'bias')
    }
    assert torch.equal(unpacked['attn.k_proj.weight'],
                       base['attn.in_proj_weight'][4:8])


def test_packed_update_is_that_of_the_projections_one_below_the_other(base):
    pairs = {f'attn.{part}': pair() for part in PARTS}
    packed = pack_pairs(pairs, base, 2)
    assert set(packed) == {'attn', 'attn.base_layer.out_proj'}
    torch.testing.assert_close(
        update(packed['attn']),
        torch.cat([update(pairs[f'attn.{part}']) for part in PARTS[:3]]))
    torch.testing.assert_close(
        out_proj_count() * update(packed['attn.base_layer.out_proj']),
        update(pairs['attn.out_proj']))


@pytest.mark.parametrize('parts', [PARTS, PARTS[:1], PARTS[1:3], PARTS[3:]],
                         ids='+'.join)  # yapf: disable
def test_unpacking_undoes_packing_bit_for_bit(base, parts):
    pairs = {f'attn.{part}': pair() for part in parts}
    pairs['fc'] = pair()
    assert_equal(unpack_pairs(pack_pairs(pairs, base, 2), ['attn'], 2), pairs)


def test_projections_of_one_a_stay_at_their_rank(base):
    down = torch.randn(2, 4)
    pairs = {f'attn.{part}': pair()._replace(down=down) for part in PARTS}
    packed = pack_pairs(pairs, base, 2)
    assert packed['attn'].down.shape == (2, 4)
    assert_equal(unpack_pairs(packed, ['attn'], 2), pairs)


def test_packed_pair_of_plain_peft_shares_its_a():
    packed = pair(outputs=12)
    unpacked = unpack_pairs({'attn': packed}, ['attn'], 2)
    assert list(unpacked) == ['attn.q_proj', 'attn.k_proj', 'attn.v_proj']
    torch.testing.assert_close(
        torch.cat([update(one) for one in unpacked.values()]), update(packed))


def test_untrained_adapter_of_plain_peft_keeps_its_a():
    fresh = pair(rank=6)._replace(up=torch.zeros(12, 6))
    unpacked = unpack_pairs({'attn': fresh}, ['attn'], 6)
    assert all(torch.equal(one.down, fresh.down) for one in unpacked.values())


def test_output_projection_counts_as_often_as_peft_adds_it():
    attention = nn.MultiheadAttention(4, 2, bias=False, batch_first=True)
    x = torch.randn(1, 3, 4)
    holder = nn.ModuleDict(dict(attn=attention))
    inject_adapter_in_model(
        LoraConfig(r=2, lora_alpha=2, target_modules=['attn']), holder)
    layer = holder['attn'].base_layer.out_proj
    nn.init.normal_(layer.lora_B['default'].weight)
    delta = layer.get_delta_weight('default').detach()
    plain = nn.MultiheadAttention(4, 2, bias=False, batch_first=True)
    plain.load_state_dict({
        'in_proj_weight':
        holder['attn'].in_proj_weight.detach(),
        'out_proj.weight':
        layer.base_layer.weight.detach() + out_proj_count() * delta
    })
    torch.testing.assert_close(holder['attn'](x, x, x)[0], plain(x, x, x)[0])
    assert delta.abs().max() > 0.1


def test_asking_how_often_draws_no_random_number():
    out_proj_count.cache_clear()
    before = torch.random.get_rng_state()
    out_proj_count()
    assert torch.equal(torch.random.get_rng_state(), before)
