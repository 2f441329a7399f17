# SPDX-License-Identifier: Apache-2.0
"""Base weights plus a weighted sum of adapters, as a parameter dict."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Mapping, Tuple

from torch import Tensor

# Shape legend: O outputs, I inputs, R rank, K kernel side


@dataclass
class Adapter:
    """Tensors of one expert inside the backbone.

    Args:
        lora (dict[str, Tensor]): ``<module>.lora_A.weight`` (R, I[, K, K])
            and ``<module>.lora_B.weight`` (O, R[, 1, 1]).
        norm (dict[str, Tensor]): Owned norm parameters and buffers, or {}.
        scaling (float): ``lora_alpha / r``.
    """
    lora: Dict[str, Tensor]
    norm: Dict[str, Tensor]
    scaling: float

    def targets(self) -> List[str]:
        """Names of the adapted layers."""
        suffix = '.lora_A.weight'
        return [k[:-len(suffix)] for k in self.lora if k.endswith(suffix)]


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


def merge_adapters(base: Mapping[str, Tensor],
                   mixture: List[Tuple[float, Adapter]]) -> Dict[str, Tensor]:
    """``W + sum_i w_i s_i B_i A_i`` for each adapted layer.

    Norm parameters and statistics are averaged with the same weights, an
    expert that owns none counting as the base.

    Args:
        base (Mapping[str, Tensor]): Parameters and buffers of the frozen
            backbone by name; never written to.
        mixture (list[tuple[float, Adapter]]): Weights, which sum to 1, and
            adapters.

    Returns:
        dict[str, Tensor]: Only the entries that differ from the base, for
        ``torch.func.functional_call``.
    """
    merged: Dict[str, Tensor] = {}
    for weight, adapter in mixture:
        for target in adapter.targets():
            key = f'{target}.weight'
            delta = lora_delta(adapter.lora[f'{target}.lora_A.weight'],
                               adapter.lora[f'{target}.lora_B.weight'])
            current = merged.get(key, base[key])
            merged[key] = current.add(
                delta.to(current), alpha=weight * adapter.scaling)
    owned = {key for _, adapter in mixture for key in adapter.norm}
    for key in owned:
        values = [(w, a.norm.get(key, base[key])) for w, a in mixture]
        if len(values) == 1 or not values[0][1].is_floating_point():
            merged[key] = values[0][1]
        else:
            merged[key] = sum(w * v for w, v in values)
    return merged
