# SPDX-License-Identifier: Apache-2.0
"""Adapters of attention: PEFT's packed form and ours.

Plain PEFT adapts ``nn.MultiheadAttention`` as a whole: one pair for the
packed query, key and value, and one for the output, at
``<attention>.base_layer.out_proj``. Ours has a pair per projection. One turns
into the other without loss: the rows of a packed B belong to one projection
each, and three pairs are one with a block-diagonal B of three times the rank.
"""
from __future__ import annotations

import functools
from typing import Dict, List, Mapping, NamedTuple, Optional, Tuple

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

_PARTS = ('q_proj', 'k_proj', 'v_proj')
_PACKED = '.in_proj_weight'
_OUT = '.base_layer.out_proj'
# Shape legend: C channels, R rank


class Pair(NamedTuple):
    """The two factors of a layer's update.

    Args:
        down (Tensor): A, (R, I) or (R, I, K, K).
        up (Tensor): B, (O, R) or (O, R, 1, 1).
        scaling (float): What PEFT multiplies ``B A`` by.
    """
    down: Tensor
    up: Tensor
    scaling: float


def attentions(base: Mapping[str, Tensor]) -> List[str]:
    """Names of the ``nn.MultiheadAttention`` of a stock backbone.

    Args:
        base (Mapping[str, Tensor]): Its state dict.
    """
    return [k[:-len(_PACKED)] for k in base if k.endswith(_PACKED)]


def unpack_base(base: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """A stock state dict under the names that layers have with us."""
    unpacked = dict(base)
    for name in attentions(base):
        for kind in ('weight', 'bias'):
            packed = unpacked.pop(f'{name}.in_proj_{kind}', None)
            if packed is not None:
                for part, value in zip(_PARTS, packed.chunk(3)):
                    unpacked[f'{name}.{part}.{kind}'] = value
    return unpacked


def unpack_pairs(pairs: Mapping[str, Pair], names: List[str],
                 rank: int) -> Dict[str, Pair]:
    """PEFT's pairs of stock attentions as pairs of their projections.

    Args:
        pairs (Mapping[str, Pair]): By module, as PEFT names them.
        names (list[str]): The attentions.
        rank (int): ``r`` of the config. A packed pair of three times that
            rank may be one that :func:`pack_pairs` made.
    """
    unpacked = dict(pairs)
    for name in names:
        packed = unpacked.pop(name, None)
        out = unpacked.pop(f'{name}{_OUT}', None)
        if packed is not None:
            split = _diagonal_blocks(packed, rank)
            if split is not None and out is not None:
                out = out._replace(down=out.down[:rank], up=out.up[:, :rank])
            # zeros fill the places of projections without an adapter
            unpacked.update({
                f'{name}.{part}': pair
                for part, pair in zip(_PARTS, split or _shared_down(packed))
                if _has_values(pair)
            })
        if out is not None and _has_values(out):
            # as often as PEFT adds it
            unpacked[f'{name}.out_proj'] = out._replace(up=out.up *
                                                        out_proj_count())
    return unpacked


def pack_pairs(pairs: Mapping[str, Pair], base: Mapping[str, Tensor],
               rank: int) -> Dict[str, Pair]:
    """Inverse of :func:`unpack_pairs`.

    Args:
        pairs (Mapping[str, Pair]): By module, as we name them, of one
            rank and scaling.
        base (Mapping[str, Tensor]): State dict of the stock backbone.
        rank (int): Of the pairs.
    """
    packed = dict(pairs)
    for name in attentions(base):
        like = base[name + _PACKED]
        parts = [packed.pop(f'{name}.{part}', None) for part in _PARTS]
        out = packed.pop(f'{name}.out_proj', None)
        given = [pair for pair in (*parts, out) if pair is not None]
        if not given:
            continue
        width, scaling = like.shape[1], given[0].scaling
        zero = Pair(
            like.new_zeros(rank, width), like.new_zeros(width, rank), scaling)
        whole = [pair or zero for pair in parts]
        if all(torch.equal(pair.down, whole[0].down) for pair in whole):
            down = whole[0].down
            up = torch.cat([pair.up for pair in whole])
        else:
            down = torch.cat([pair.down for pair in whole])
            up = torch.block_diag(*(pair.up for pair in whole))
        out = out or zero
        more = len(down) - rank
        packed[name] = Pair(down, up, scaling)
        packed[f'{name}{_OUT}'] = Pair(
            torch.cat([out.down, like.new_zeros(more, width)]),
            torch.cat([out.up / out_proj_count(),
                       like.new_zeros(width, more)], 1), scaling)
    return packed


@functools.lru_cache(maxsize=None)
def out_proj_count() -> float:
    """How often the installed PEFT adds the update of an output projection.

    Its layer for ``nn.MultiheadAttention`` merges that update by hand and
    then again through the projection's own layer, which makes 2 in 0.21.2.
    The adapter was trained with what PEFT computes, so that counts.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        attention = nn.MultiheadAttention(1, 1, bias=False, batch_first=True)
        attention.in_proj_weight.fill_(1)
        attention.out_proj.weight.fill_(0)
        holder = nn.ModuleDict(dict(attn=attention))
        inject_adapter_in_model(
            LoraConfig(r=1, lora_alpha=1, target_modules=['attn']), holder)
        for key, value in holder.state_dict().items():
            if 'out_proj.lora' in key:
                value.fill_(1)
        one = torch.ones(1, 1, 1)
        # B of the packed pair is 0: the value is 1, and so is its update
        return float(holder['attn'](one, one, one)[0])


def _shared_down(packed: Pair) -> Tuple[Pair, ...]:
    return tuple(packed._replace(up=up) for up in packed.up.chunk(3))


def _diagonal_blocks(packed: Pair, rank: int) -> Optional[List[Pair]]:
    """The three pairs of a packed one; None unless we packed three."""
    if len(packed.down) != 3 * rank:
        return None
    rows = packed.up.chunk(3)
    blocks = [row[:, rank * i:rank * (i + 1)] for i, row in enumerate(rows)]
    if not torch.equal(torch.block_diag(*blocks), packed.up):
        return None
    return [
        Pair(down, up, packed.scaling)
        for down, up in zip(packed.down.chunk(3), blocks)
    ]


def _has_values(pair: Pair) -> bool:
    return bool(pair.down.any() or pair.up.any())
