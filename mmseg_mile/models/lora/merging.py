# SPDX-License-Identifier: Apache-2.0
"""Base weights plus a weighted sum of adapters, as a parameter dict."""
from __future__ import annotations

from typing import Dict, Mapping, Sequence, Tuple

from torch import Tensor

from .adapter import Adapter
from .stacked_adapters import StackedAdapters
from .stacked_tensors import StackedTensors

# Shape legend: O outputs, I inputs, R rank, K kernel side


def lora_delta(down: Tensor, up: Tensor) -> Tensor:
    """``B A`` of LoRA (arXiv 2106.09685, eq. 3) in the weight's shape.

    Args:
        down (Tensor): A, (R, I) or (R, I, K, K).
        up (Tensor): B, (O, R) or (O, R, 1, 1).

    Returns:
        Tensor: (O, I) or (O, I, K, K).
    """
    delta = up.flatten(1) @ down.flatten(1)
    return delta.view(up.shape[0], *down.shape[1:])


def merge_adapters(
        base: Mapping[str, Tensor],
        mixture: Sequence[Tuple[float, Adapter]]) -> Dict[str, Tensor]:
    """``W + sum_i w_i s_i B_i A_i`` for each adapted layer.

    Norm parameters and statistics are averaged with the same weights, an
    expert that owns none counting as the base.

    Args:
        base (Mapping[str, Tensor]): Parameters and buffers of the frozen
            backbone by name; never written to.
        mixture (Sequence[tuple[float, Adapter]]): Weights, which sum to 1,
            and adapters.

    Returns:
        dict[str, Tensor]: Only the entries that differ from the base, for
        :meth:`TensorSlots.holding`.
    """
    if len(mixture) != 1:
        stack = StackedAdapters([adapter for _, adapter in mixture])
        return stack.merged([weight for weight, _ in mixture], base)
    (weight, adapter), = mixture
    merged: Dict[str, Tensor] = {}
    for target in adapter.targets():
        key = f'{target}.weight'
        delta = lora_delta(adapter.lora[f'{target}.lora_A.weight'],
                           adapter.lora[f'{target}.lora_B.weight'])
        # a clone keeps the strides, by which convolutions choose their
        # kernel, those of 1x1 weights included
        merged[key] = base[key].detach().clone()
        merged[key].add_(delta.to(merged[key]), alpha=weight * adapter.scaling)
    return {**merged, **mix_norm(base, mixture)}


def mix_norm(base: Mapping[str, Tensor],
             mixture: Sequence[Tuple[float, Adapter]]) -> Dict[str, Tensor]:
    """Weighted mean of owned norm tensors; see :func:`merge_adapters`."""
    if len(mixture) == 1:
        own = mixture[0][1].norm
        return {k: v.to(base[k].device) for k, v in own.items()}
    norms = StackedTensors([adapter.norm for _, adapter in mixture])
    return norms.mean([weight for weight, _ in mixture], base)
