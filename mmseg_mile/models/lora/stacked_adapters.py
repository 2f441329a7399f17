# SPDX-License-Identifier: Apache-2.0
"""Factors of several adapters side by side, to be weighted and multiplied."""
from __future__ import annotations

from typing import Dict, List, Mapping, NamedTuple, Sequence

import torch
from torch import Tensor

from .adapter import Adapter
from .stacked_tensors import StackedTensors

# Shape legend: O outputs, I inputs, R ranks of all experts, K kernel side,
# E experts


class _Factors(NamedTuple):
    """Of one layer.

    Args:
        down (Tensor): A of the experts below each other, (R, I K K).
        up (Tensor): ``s B`` of the experts side by side, (O, R).
        owners (Tensor): (R,), the expert of each rank.
    """
    down: Tensor
    up: Tensor
    owners: Tensor


class StackedAdapters:
    """Several adapters that are mixed with ever other weights.

    ``sum_i w_i s_i B_i A_i`` is one product, ``[w_1 s_1 B_1 ...] [A_1; ...]``,
    so that a mixture costs each layer one matrix product and one pass over
    its weight, not one per expert. The factors keep their place while the
    weights of SemLA's fusion (arXiv 2503.21780) change from image to image.

    Args:
        adapters (Sequence[Adapter]): Of one backbone. Ranks may differ, and
            not all need to adapt the same layers.
    """

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        targets: Dict[str, List[int]] = {}
        for index, adapter in enumerate(adapters):
            for target in adapter.targets():
                targets.setdefault(target, []).append(index)
        self._factors = {
            target: _side_by_side(adapters, owners, target)
            for target, owners in targets.items()
        }
        self._norms = StackedTensors([adapter.norm for adapter in adapters])

    def num_bytes(self) -> int:
        """Memory that the copies take."""
        return self._norms.num_bytes() + sum(
            part.nbytes for factors in self._factors.values()
            for part in factors)

    def merged(self, weights: Sequence[float],
               base: Mapping[str, Tensor]) -> Dict[str, Tensor]:
        """Weights of a mixture, see :func:`merge_adapters`.

        Args:
            weights (Sequence[float]): Of the adapters, in their order.
            base (Mapping[str, Tensor]): The backbone's tensors.
        """
        merged: Dict[str, Tensor] = {}
        for target, (down, up, owners) in self._factors.items():
            key = f'{target}.weight'
            weights_E = torch.tensor(weights, dtype=up.dtype, device=up.device)
            # a clone keeps the strides, see merge_adapters
            merged[key] = base[key].detach().clone()
            _add_product(merged[key], up * weights_E[owners], down)
        return {**merged, **self._norms.mean(weights, base)}


def _side_by_side(adapters: Sequence[Adapter], owners: Sequence[int],
                  target: str) -> _Factors:
    downs, ups, ranks = [], [], []
    for index in owners:
        adapter = adapters[index]
        down, up = (
            adapter.lora[f'{target}.lora_{x}.weight'].flatten(1) for x in 'AB')
        # stored in half precision they are added in float32 all the same
        dtype = torch.promote_types(up.dtype, torch.float32)
        downs.append(down.to(dtype))
        ups.append(up.to(dtype) * adapter.scaling)
        ranks.append(len(down))
    device = ups[0].device
    return _Factors(
        torch.cat([down.to(device) for down in downs]),
        torch.cat([up.to(device) for up in ups], 1),
        torch.tensor(owners, device=device).repeat_interleave(
            torch.tensor(ranks, device=device)))


def _add_product(weight: Tensor, up: Tensor, down: Tensor) -> None:
    """``weight += up down``, in one pass where the layout allows it."""
    if (weight.is_contiguous() and weight.dtype == up.dtype
            and weight.device == up.device):
        weight.view(len(weight), -1).addmm_(up, down)
    else:
        weight.add_((up @ down).view(weight.shape).to(weight))
