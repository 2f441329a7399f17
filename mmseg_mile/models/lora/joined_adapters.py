# SPDX-License-Identifier: Apache-2.0
"""Several adapters as one: exactly, or cut to a rank."""
from __future__ import annotations

from typing import Dict, Mapping, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor

from .adapter import Adapter

# Shape legend: O outputs, I inputs, R rank, K kernel side


class Residual(NamedTuple):
    """Frobenius norms of an update of the weights, and of what was cut off.

    Args:
        lost (float): Norm of the part that is gone.
        whole (float): Norm of the update before.
    """
    lost: float
    whole: float

    @property
    def relative(self) -> float:
        """float: Share of the norm that is gone; 0 for no update."""
        return self.lost / self.whole if self.whole else 0.0


def join_adapters(mixture: Sequence[Tuple[float, Adapter]]) -> Adapter:
    """One adapter that is a weighted sum of others, ``sum_i w_i s_i B_i A_i``.

    A sum of products is one product of the factors side by side, so the
    rank is the sum of the ranks and nothing is lost. A layer that an adapter
    does not have gets zeros, so that all layers have one rank. Norm layers
    are left out.

    Args:
        mixture (Sequence[tuple[float, Adapter]]): Weights, and adapters of
            one backbone.

    Returns:
        Adapter: Of scaling 1.
    """
    lora: Dict[str, Tensor] = {}
    for target in dict.fromkeys(t for _, a in mixture for t in a.targets()):
        downs, ups = [], []
        for weight, adapter in mixture:
            down, up = _factors(adapter, target, mixture)
            downs.append(down)
            ups.append(up.double() * (weight * adapter.scaling))
        lora[f'{target}.lora_A.weight'] = torch.cat(downs)
        lora[f'{target}.lora_B.weight'] = torch.cat(ups, 1).to(downs[0].dtype)
    return Adapter(lora, {}, 1.0)


def cut_adapter(adapter: Adapter,
                rank: int) -> Tuple[Adapter, Dict[str, Residual]]:
    """The nearest adapter of a lower rank, by singular values.

    No other of this rank is nearer in Frobenius norm (Eckart and Young,
    1936). The update is never built: QR of both factors leaves a small core
    to decompose.

    Args:
        adapter (Adapter): Its norm layers are left out.
        rank (int): Of the result.

    Returns:
        tuple: An adapter of scaling 1, and what each layer lost.
    """
    lora: Dict[str, Tensor] = {}
    residuals = {}
    for target in adapter.targets():
        keys = [f'{target}.lora_{x}.weight' for x in 'AB']
        down, up = (adapter.lora[key] for key in keys)
        left, core_l = torch.linalg.qr(up.flatten(1).double())
        right, core_r = torch.linalg.qr(down.flatten(1).double().T)
        u, s, vh = torch.linalg.svd(
            adapter.scaling * core_l @ core_r.T, full_matrices=False)
        kept = min(rank, len(s))
        root = s[:kept].sqrt()
        new_up = up.new_zeros(up.shape[0], rank)
        new_up[:, :kept] = left @ u[:, :kept] * root
        new_down = down.new_zeros(rank, right.shape[0])
        new_down[:kept] = root[:, None] * (vh[:kept] @ right.T)
        lora[keys[0]] = new_down.view(rank, *down.shape[1:])
        lora[keys[1]] = new_up.view(up.shape[0], rank, *up.shape[2:])
        residuals[target] = Residual(float(s[kept:].norm()), float(s.norm()))
    return Adapter(lora, {}, 1.0), residuals


def total_residual(residuals: Mapping[str, Residual]) -> Residual:
    """Of all layers together, as if they were one long vector."""
    return Residual(*(float(torch.tensor(norms).double().norm())
                      for norms in zip(*residuals.values())))


def _factors(
        adapter: Adapter, target: str,
        mixture: Sequence[Tuple[float, Adapter]]) -> Tuple[Tensor, Tensor]:
    """A and B of a layer; of a layer without adapter, zeros."""
    keys = [f'{target}.lora_{x}.weight' for x in 'AB']
    if keys[0] in adapter.lora:
        return adapter.lora[keys[0]], adapter.lora[keys[1]]
    like = next(a for _, a in mixture if keys[0] in a.lora)
    rank = max((v.shape[0] for k, v in adapter.lora.items() if 'lora_A' in k),
               default=0)
    down, up = (like.lora[key] for key in keys)
    return (down.new_zeros(rank, *down.shape[1:]),
            up.new_zeros(up.shape[0], rank, *up.shape[2:]))
