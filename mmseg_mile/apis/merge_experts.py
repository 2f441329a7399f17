# SPDX-License-Identifier: Apache-2.0
"""Several experts of a library as one."""
from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Dict, List, Optional, Sequence

from mmseg_mile.experts import ExpertStore
from mmseg_mile.experts.library_edits import AnyPath, check_free, open_library
from mmseg_mile.models.backbones.stored_adapters import adapter_of
from mmseg_mile.models.gates.merged_prototypes import merge_prototypes
from mmseg_mile.models.lora import Adapter
from mmseg_mile.models.lora.joined_adapters import (Residual, cut_adapter,
                                                    join_adapters)
from mmseg_mile.models.lora.merging import mix_norm
from mmseg_mile.models.lora.peft_attention import unpack_base
from mmseg_mile.structures import Expert


@dataclass
class Merged:
    """What :func:`merge_experts` made.

    Args:
        name (str): The new expert.
        rank (int): Of its adapter.
        head (str): Expert whose head and classes it has.
        weights (dict[str, float]): Of the experts it was made of.
        residuals (dict[str, Residual]): What each layer lost, by its name;
            {} where nothing was cut.
    """
    name: str
    rank: int
    head: str
    weights: Dict[str, float]
    residuals: Dict[str, Residual] = field(default_factory=dict)


def merge_experts(library: AnyPath,
                  names: Sequence[str],
                  new: str,
                  weights: Optional[Sequence[float]] = None,
                  rank: Optional[int] = None,
                  head: Optional[str] = None,
                  pooled: bool = False,
                  force: bool = False) -> Merged:
    """Add an expert whose update is ``sum_i w_i s_i B_i A_i`` exactly.

    Its rank is the sum of the ranks, or ``rank``, to which the update is cut
    by singular values. Heads cannot be added: it takes one of theirs, with
    its classes. Norm layers are averaged with the weights, brought to sum 1,
    an expert that owns none counting as the base; so with weights of that
    sum the backbone is the one that a gate fuses for such a routing.
    Prototypes are merged as :func:`merge_prototypes` says, without weights:
    they tell of images, not of updates.

    Args:
        library (str | Path): The library; its other experts stay.
        names (Sequence[str]): Experts to merge.
        new (str): Name of the new one.
        weights (Sequence[float], optional): One per expert, above 0.
            Defaults to None: equal ones of sum 1.
        rank (int, optional): Of the new one. Defaults to None: nothing is
            cut.
        head (str, optional): Expert that gives the head. Defaults to None:
            the heaviest, of equal ones the first.
        pooled (bool): Whether to make one prototype of all. Defaults to
            False.
        force (bool): Whether an expert of that name may be replaced.

    Raises:
        ValueError: If an argument is out of range, a name is unknown or
            taken, or a file was changed.
    """
    store = open_library(library)
    shares = _checked_weights(names, weights)
    if head is None:
        head = max(shares, key=lambda name: shares[name])
    elif head not in shares:
        raise ValueError(f'--head must be one of the merged experts '
                         f'{list(shares)}, got {head!r}')
    check_free(store, new, force)
    experts = {e.name: e.load() for e in store.open(list(shares))}
    merged = Merged(new, 0, head, shares)
    adapter = _merged_adapter(store, experts, merged, rank)
    speaker = experts[head]
    store.save(
        replace(
            speaker,
            name=new,
            lora_config=dict(speaker.lora_config, **_plain(merged.rank)),
            lora=adapter.lora,
            norm=adapter.norm,
            prototypes=merge_prototypes(
                [e.prototypes for e in experts.values()], pooled),
            provenance=_provenance(experts, merged)))
    return merged


def _plain(rank: int) -> Dict[str, Any]:
    """Settings of an adapter of scaling 1."""
    return dict(r=rank, lora_alpha=rank, use_rslora=False)


def _checked_weights(names: Sequence[str],
                     weights: Optional[Sequence[float]]) -> Dict[str, float]:
    if not names or len(set(names)) != len(names):
        raise ValueError(f'name each expert to merge once, got {list(names)}')
    if weights is None:
        weights = [1 / len(names)] * len(names)
    if len(weights) != len(names) or not all(w > 0 and math.isfinite(w)
                                             for w in weights):
        raise ValueError(f'--weights must be one number above 0 for each of '
                         f'{list(names)}, got {list(weights)}')
    return dict(zip(names, map(float, weights)))


def _merged_adapter(store: ExpertStore, experts: Dict[str, Expert],
                    merged: Merged, rank: Optional[int]) -> Adapter:
    """The adapter; notes rank and residuals."""
    base = unpack_base(store.load_base()[0])
    mixture = [(merged.weights[name], adapter_of(expert, base))
               for name, expert in experts.items()]
    adapter = join_adapters(mixture)
    ranks = {len(v) for k, v in adapter.lora.items() if '.lora_A' in k}
    if not ranks:
        raise ValueError(f'none of {list(experts)} has an adapter: there is '
                         'nothing to merge')
    merged.rank, = ranks
    if rank is not None:
        if not 1 <= rank <= merged.rank:
            raise ValueError(
                f'--rank must be from 1 to {merged.rank}, the sum of the '
                f'ranks, got {rank}; leave it out to lose nothing')
        merged.rank = rank
        adapter, merged.residuals = cut_adapter(adapter, rank)
    total = sum(merged.weights.values())
    adapter.norm = mix_norm(base, [(w / total, a) for w, a in mixture])
    return adapter


def _provenance(experts: Dict[str, Expert], merged: Merged) -> Dict[str, Any]:
    parts: List[Dict[str, Any]] = [
        dict(
            expert=name,
            weight=merged.weights[name],
            provenance=expert.provenance) for name, expert in experts.items()
    ]
    return dict(merged_from=parts, rank=merged.rank, head_from=merged.head)
