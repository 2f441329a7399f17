# SPDX-License-Identifier: Apache-2.0
"""The tensors of one expert inside the backbone, and sums of several.

``W + sum_i w_i s_i B_i A_i`` comes as merged weights
(:meth:`AdapterStack.merge`), as one adapter that is exactly the sum
(:func:`concatenate_adapters`), and cut to a rank (:func:`cut_adapter`).
"""
from __future__ import annotations

import math
from collections import ChainMap
from dataclasses import dataclass
from typing import (Any, Dict, Iterator, List, Mapping, NamedTuple, Optional,
                    Sequence, Tuple)

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .targets import lora_scaling

# Shape legend: O outputs, I inputs, R rank, K kernel side, E experts,
# N values

Mixture = Sequence[Tuple[float, 'Adapter']]


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

    def factors(self, target: str) -> Tuple[Tensor, Tensor]:
        """A and B of a layer."""
        return (self.lora[f'{target}.lora_A.weight'],
                self.lora[f'{target}.lora_B.weight'])

    def ranks(self) -> List[int]:
        """The ranks that its layers have, usually a single one."""
        return sorted({len(self.factors(t)[0]) for t in self.targets()})

    def num_bytes(self) -> int:
        """Memory that the tensors take."""
        return sum(
            v.nbytes for part in (self.lora, self.norm) for v in part.values())

    def clone(self, device: Optional[torch.device] = None) -> 'Adapter':
        """A copy that shares no tensor, on ``device`` if one is given."""
        lora, norm = ({
            k: v.to(device or v.device, copy=True)
            for k, v in tensors.items()
        } for tensors in (self.lora, self.norm))
        return Adapter(lora, norm, self.scaling)

    def check_settings(self, name: str, targets: Sequence[str],
                       config: Mapping[str, Any], train_norm: bool) -> None:
        """Raise a ValueError unless training can go on from here.

        Layers, rank and scaling must be those of the config, and norm layers
        that the adapter owns must be trained.
        """
        mine = self.targets()
        scaling = lora_scaling(config)
        if (set(mine) != set(targets) or set(self.ranks()) - {config['r']}
                or self.scaling != scaling or bool(self.norm) > train_norm):
            raise ValueError(
                f'expert {name!r} has {len(mine)} layers of rank '
                f'{self.ranks()}, scaling {self.scaling:g} and '
                f'{len(self.norm)} norm tensors; the config asks for '
                f'{len(targets)}, {config["r"]}, {scaling:g} and train_norm='
                f'{train_norm}: train with the settings it was made with, '
                "or start from 'base'.")

    def check_fit(self,
                  name: str,
                  base: Mapping[str, Tensor],
                  adapts: Optional[bool] = True) -> None:
        """Raise a ValueError unless the tensors fit the layers of ``base``.

        Args:
            name (str): Of the expert, for the message.
            base (Mapping[str, Tensor]): The backbone's tensors by name.
            adapts (bool, optional): Whether it must adapt a layer, or must
                not; None allows both. Defaults to True.
        """
        shapes = {k: v.shape for k, v in base.items()}
        wrong = [k for k, v in self.norm.items() if shapes.get(k) != v.shape]
        pairs = [f'{t}.lora_{x}.weight' for t in self.targets() for x in 'AB']
        wrong += set(self.lora).symmetric_difference(pairs)
        for target in self.targets() if not wrong else ():
            down, up = self.factors(target)
            if (down.shape[0] != up.shape[1] or shapes.get(f'{target}.weight')
                    != (up.shape[0], *down.shape[1:])):
                wrong.append(target)
        if wrong or adapts not in (None, bool(self.lora)):
            found = 'no' if adapts else 'an'
            raise ValueError(
                f'expert {name!r} does not fit the layers of this backbone: '
                f'{sorted(wrong)[:5] or f"it has {found} adapter"}. Load it '
                'into the backbone that it was trained in, or train it again.')


def lora_delta(down: Tensor, up: Tensor) -> Tensor:
    """``B A`` of LoRA (arXiv 2106.09685, eq. 3), (O, I) or (O, I, K, K).

    Args:
        down (Tensor): A, (R, I) or (R, I, K, K).
        up (Tensor): B, (O, R) or (O, R, 1, 1).
    """
    delta = up.flatten(1) @ down.flatten(1)
    return delta.view(up.shape[0], *down.shape[1:])


class AdapterStack:
    """The factors of several adapters side by side.

    ``sum_i w_i s_i B_i A_i`` is one product, ``[w_1 s_1 B_1 ...] [A_1; ...]``:
    one pass over a layer's weight, not one per expert. The factors keep their
    place while the weights ``w`` change from image to image.

    Args:
        adapters (Sequence[Adapter]): Of one backbone. Ranks may differ, and
            not all need to adapt the same layers.
    """

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self._scalings = [adapter.scaling for adapter in adapters]
        self._norms = NormStack([adapter.norm for adapter in adapters])
        # of each layer A (R, I K K), B (O, R) and the expert of each rank
        self._factors: Dict[str, Tuple[Tensor, Tensor, Tuple[int, ...]]] = {}
        for target in dict.fromkeys(t for a in adapters for t in a.targets()):
            downs, ups, owners = [], [], []
            for index, adapter in enumerate(adapters):
                if f'{target}.lora_A.weight' in adapter.lora:
                    down, up = adapter.factors(target)
                    downs.append(_wide(down.flatten(1)))
                    ups.append(_wide(up.flatten(1)))
                    owners += [index] * len(down)
            factors = _joined(downs, 0), _joined(ups, 1), tuple(owners)
            self._factors[target] = factors

    def num_bytes(self) -> int:
        """Memory that the copies take."""
        return self._norms.num_bytes() + sum(
            down.nbytes + up.nbytes for down, up, _ in self._factors.values())

    def weighted(
            self,
            weights: Sequence[float]) -> Iterator[Tuple[str, Tensor, Tensor]]:
        """Of each layer A (R, I K K) and ``w s B`` (O, R), R all ranks.

        Args:
            weights (Sequence[float]): Of the adapters, in their order.
        """
        shares = [w * s for w, s in zip(weights, self._scalings)]
        # most layers have the same experts, so the same factor for each rank
        shares_R: Dict[Tuple[int, ...], Tensor] = {}
        for target, (down, up, owners) in self._factors.items():
            if owners not in shares_R:
                shares_R[owners] = up.new_tensor([shares[i] for i in owners])
            yield target, down, up * shares_R[owners]

    def merge(self, base: Mapping[str, Tensor],
              weights: Sequence[float]) -> Dict[str, Tensor]:
        """``W + sum_i w_i s_i B_i A_i`` for each adapted layer.

        Norm parameters and statistics are averaged with the same weights, an
        expert that owns none counting as the base.

        Args:
            base (Mapping[str, Tensor]): Parameters and buffers of the frozen
                backbone by name; never written to.
            weights (Sequence[float]): Of the adapters, in their order, of
                sum 1.

        Returns:
            dict[str, Tensor]: Only the entries that differ from the base,
            for :meth:`TensorSlots.holding`.
        """
        merged = self._norms.mean(base, weights)
        for target, down, up in self.weighted(weights):
            # a clone keeps the strides, by which convolutions choose their
            # kernel, those of 1x1 weights included
            weight = base[f'{target}.weight'].detach().clone()
            if (weight.is_contiguous() and weight.dtype == up.dtype
                    and weight.device == up.device):
                weight.view(len(weight), -1).addmm_(up, down)
            else:
                weight.add_((up @ down).view(weight.shape).to(weight))
            merged[f'{target}.weight'] = weight
        return merged


def _wide(x: Tensor) -> Tensor:
    """Stored in half precision, it is added in float32 all the same."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _joined(factors: Sequence[Tensor], dim: int) -> Tensor:
    """Side by side on the first one's device; a single one is not copied."""
    if len(factors) == 1:
        return factors[0]
    return torch.cat([f.to(factors[0].device) for f in factors], dim)


class NormStack:
    """Norm tensors of several experts as rows of one matrix (E, N).

    Their weighted mean is one product, however many tensors there are.

    Args:
        norms (Sequence[Mapping[str, Tensor]]): Of each expert, by name; not
            all need to own the same.
    """

    def __init__(self, norms: Sequence[Mapping[str, Tensor]]) -> None:
        self._first = dict(ChainMap(*map(dict, norms)))
        # a single expert's are taken as they are, and counts are no quantity
        self._owners = {
            k: [k in norm for norm in norms]
            for k, v in self._first.items()
            if v.is_floating_point() and len(norms) > 1
        }
        self._values_EN = torch.stack([self._row(norm) for norm in norms])

    def _row(self, norm: Mapping[str, Tensor]) -> Tensor:
        """Values one after the other, zeros for those that it lacks."""
        values = []
        for key in self._owners:
            like = self._first[key]
            value = norm[key] if key in norm else torch.zeros_like(like)
            values.append(_wide(value).to(like.device).flatten())
        return torch.cat(values) if values else torch.empty(0)

    def num_bytes(self) -> int:
        """Memory that the matrix takes."""
        return self._values_EN.nbytes

    def mean(self, base: Mapping[str, Tensor],
             weights: Sequence[float]) -> Dict[str, Tensor]:
        """Weighted mean of each tensor.

        Args:
            base (Mapping[str, Tensor]): Stands in for tensors that an expert
                does not own.
            weights (Sequence[float]): Of the experts, of sum 1.

        Returns:
            dict[str, Tensor]: On the base's device; of counts, the first
            expert's.
        """
        mixed = {k: v.to(base[k].device) for k, v in self._first.items()}
        flat_N = self._values_EN.new_tensor(weights) @ self._values_EN
        values = flat_N.split([mixed[k].numel() for k in self._owners])
        for (key, owners), value in zip(self._owners.items(), values):
            like = mixed[key]
            value = value.view(like.shape).to(like.device)
            others = sum(w for w, own in zip(weights, owners) if not own)
            if others:
                value = value + others * base[key]
            mixed[key] = value.to(like.dtype)
        return mixed


def mix_norm(base: Mapping[str, Tensor],
             mixture: Mixture) -> Dict[str, Tensor]:
    """Weighted mean of owned norm tensors, see :meth:`NormStack.mean`."""
    stack = NormStack([adapter.norm for _, adapter in mixture])
    return stack.mean(base, [weight for weight, _ in mixture])


def concatenate_adapters(mixture: Mixture) -> Adapter:
    """The adapter that is exactly the sum ``sum_i w_i s_i B_i A_i``.

    Its rank is the sum of the ranks, filled with zeros in layers that not all
    adapt. It has scaling 1 and no norm layers.
    """
    stack = AdapterStack([adapter for _, adapter in mixture])
    rank = sum(max(a.ranks(), default=0) for _, a in mixture)
    like = {k: v for _, a in reversed(mixture) for k, v in a.lora.items()}
    lora: Dict[str, Tensor] = {}
    for target, down, up in stack.weighted([weight for weight, _ in mixture]):
        a, b = (like[f'{target}.lora_{x}.weight'] for x in 'AB')
        missing = rank - len(down)
        down, up = F.pad(down, (0, 0, 0, missing)), F.pad(up, (0, missing))
        lora[f'{target}.lora_A.weight'] = down.view(rank, *a.shape[1:]).to(a)
        lora[f'{target}.lora_B.weight'] = up.view(len(up), rank,
                                                  *b.shape[2:]).to(b)
    return Adapter(lora, {}, 1.0)


class Residual(NamedTuple):
    """Frobenius norms of what was cut off an update, and of the update."""
    lost: float
    whole: float

    @property
    def relative(self) -> float:
        """float: Share of the norm that is gone; 0 for no update."""
        return self.lost / self.whole if self.whole else 0.0


def total_residual(residuals: Mapping[str, Residual]) -> Residual:
    """Of all layers together, as if they were one long vector."""
    return Residual(*(math.hypot(*norms)
                      for norms in zip(*residuals.values())))


def cut_adapter(adapter: Adapter,
                rank: int) -> Tuple[Adapter, Dict[str, Residual]]:
    """The nearest adapter of a lower rank, and what each layer lost.

    No other of this rank is nearer in Frobenius norm (Eckart and Young,
    1936). The update is never built: QR of both factors leaves a small core
    to decompose. The result has scaling 1 and no norm layers.
    """
    lora: Dict[str, Tensor] = {}
    residuals = {}
    for target in adapter.targets():
        down, up = adapter.factors(target)
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
        lora[f'{target}.lora_A.weight'] = new_down.view(rank, *down.shape[1:])
        lora[f'{target}.lora_B.weight'] = new_up.view(
            len(up), rank, *up.shape[2:])
        residuals[target] = Residual(float(s[kept:].norm()), float(s.norm()))
    return Adapter(lora, {}, 1.0), residuals


def fused_adapter(mixture: Mixture, base: Mapping[str, Tensor],
                  config: Mapping[str, Any]) -> Adapter:
    """The adapter of the config's rank that is nearest to a weighted sum.

    Where the sum has a lower rank than that, the rest starts as LoRA does
    (arXiv 2106.09685): B is zero and A is drawn, so that it can be trained.
    A single adapter is copied.

    Args:
        mixture (Sequence[tuple[float, Adapter]]): Weights, of sum 1, and
            adapters with the config's rank and scaling.
        base (Mapping[str, Tensor]): The backbone's tensors by name.
        config (Mapping): Of :func:`check_lora_config`.
    """
    if len(mixture) == 1:
        return mixture[0][1].clone()
    scaling = lora_scaling(config)
    lora = cut_adapter(concatenate_adapters(mixture), config['r'])[0].lora
    for key, value in lora.items():
        if '.lora_B' in key:
            lora[key] = value / scaling
            continue
        unused = value.flatten(1).norm(dim=1) == 0
        drawn = value.new_empty(value.shape)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))
        value[unused] = drawn[unused]
    return Adapter(lora, mix_norm(base, mixture), scaling)
