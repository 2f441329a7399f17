# SPDX-License-Identifier: Apache-2.0
"""The tensors of one expert inside the backbone."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import (Any, Dict, List, Mapping, NamedTuple, Optional, Sequence,
                    Tuple)

import torch
from torch import Tensor, nn

from .targets import lora_scaling

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
        """Raise unless training can go on from here with these settings.

        Raises:
            ValueError: If layers, rank or scaling differ, or the adapter
                owns norm layers that would not be trained.
        """
        ranks = {v.shape[0] for k, v in self.lora.items() if 'lora_A' in k}
        scaling = lora_scaling(config)
        if (set(self.targets()) != set(targets) or ranks - {config['r']}
                or self.scaling != scaling or bool(self.norm) > train_norm):
            raise ValueError(
                f'expert {name!r} has {len(self.targets())} layers of rank '
                f'{sorted(ranks)}, scaling {self.scaling:g} and '
                f'{len(self.norm)} norm tensors; the config asks for '
                f'{len(targets)}, {config["r"]}, {scaling:g} and train_norm='
                f'{train_norm}: train with the settings it was made with, '
                "or start from 'base'.")

    def check_fit(self,
                  name: str,
                  base: Mapping[str, Tensor],
                  adapts: Optional[bool] = True) -> None:
        """Raise unless the tensors fit the layers of ``base``.

        Args:
            name (str): Of the expert, for the message.
            base (Mapping[str, Tensor]): The backbone's tensors by name.
            adapts (bool, optional): Whether it must adapt a layer, or must
                not; None allows both. Defaults to True.

        Raises:
            ValueError: If a layer does not exist or has another shape, or
                the adapter is empty or should be.
        """
        wrong = [k for k, v in self.norm.items() if _shape(base, k) != v.shape]
        pairs = [f'{t}.lora_{x}.weight' for t in self.targets() for x in 'AB']
        wrong += set(self.lora).symmetric_difference(pairs)
        for target in self.targets() if not wrong else ():
            down, up = (self.lora[f'{target}.lora_{x}.weight'] for x in 'AB')
            if (down.shape[0] != up.shape[1]
                    or _shape(base, f'{target}.weight')
                    != (up.shape[0], *down.shape[1:])):
                wrong.append(target)
        if wrong or adapts not in (None, bool(self.lora)):
            found = 'no' if adapts else 'an'
            raise ValueError(
                f'expert {name!r} does not fit the layers of this backbone: '
                f'{sorted(wrong)[:5] or f"it has {found} adapter"}. Load it '
                'into the backbone that it was trained in, or train it again.')


def _shape(base: Mapping[str, Tensor], key: str) -> Any:
    return getattr(base.get(key), 'shape', None)


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


# Shape legend: n experts, N values


class _Block(NamedTuple):
    """Tensors that the same experts own, one after the other.

    Args:
        owners (tuple[int]): The n experts.
        keys (list[str]): Names of the tensors.
        shapes (list[torch.Size]): Their shapes.
        dtype (torch.dtype): Their type; sums are taken in float32 or above.
        values_nN (Tensor): A row for each expert.
    """
    owners: Tuple[int, ...]
    keys: List[str]
    shapes: List[torch.Size]
    dtype: torch.dtype
    values_nN: Tensor


class StackedTensors:
    """Named tensors of several experts side by side.

    Their weighted mean is one product of a row and a matrix, however many
    tensors an expert has.

    Args:
        states (Sequence[Mapping[str, Tensor]]): Of each expert, by name; not
            all need to own the same.
    """

    def __init__(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        self._num_experts = len(states)
        self._counts: Dict[str, Tensor] = {}
        self._count_keys: List[str] = []
        blocks: Dict[Tuple[Tuple[int, ...], torch.dtype], List[str]] = {}
        # a dict, for an order that does not change from run to run
        for key in dict.fromkeys(k for state in states for k in state):
            owners = tuple(i for i, state in enumerate(states) if key in state)
            value = states[owners[0]][key]
            if value.is_floating_point():
                blocks.setdefault((owners, value.dtype), []).append(key)
                continue
            self._count_keys.append(key)
            if key in states[0]:
                self._counts[key] = value
        self._blocks = [
            _Block(owners, keys, [states[owners[0]][k].shape
                                  for k in keys], dtype,
                   _rows([states[i] for i in owners], keys))
            for (owners, dtype), keys in blocks.items()
        ]

    def num_bytes(self) -> int:
        """Memory that the matrices take."""
        return sum(block.values_nN.nbytes for block in self._blocks)

    def mean(self, weights: Sequence[float],
             base: Mapping[str, Tensor]) -> Dict[str, Tensor]:
        """Weighted mean of each tensor.

        Args:
            weights (Sequence[float]): Of the experts, of sum 1.
            base (Mapping[str, Tensor]): Stands in for tensors that an expert
                does not own.

        Returns:
            dict[str, Tensor]: On the base's device; of counts, which are no
            quantity, the first expert's.
        """
        mixed: Dict[str, Tensor] = {}
        for block in self._blocks:
            own = [weights[i] for i in block.owners]
            flat = _row(own, block.values_nN) @ block.values_nN
            sizes = [shape.numel() for shape in block.shapes]
            for key, shape, value in zip(block.keys, block.shapes,
                                         flat.split(sizes)):
                mixed[key] = value.view(shape).to(base[key].device)
                if len(own) < self._num_experts:
                    mixed[key] += (sum(weights) - sum(own)) * base[key]
                mixed[key] = mixed[key].to(block.dtype)
        for key in self._count_keys:
            mixed[key] = self._counts.get(key, base[key]).to(base[key].device)
        return mixed


def _rows(states: Sequence[Mapping[str, Tensor]],
          keys: Sequence[str]) -> Tensor:
    """(n, N), in float32 or above, on one device."""
    first = states[0][keys[0]]
    dtype = torch.promote_types(first.dtype, torch.float32)
    size = sum(states[0][key].numel() for key in keys)
    rows = first.new_empty((len(states), size), dtype=dtype)
    for row, state in zip(rows, states):
        torch.cat([state[key].reshape(-1).to(rows) for key in keys], out=row)
    return rows


def _row(weights: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(weights, dtype=like.dtype, device=like.device)


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


def fused_adapter(mixture: Sequence[Tuple[float, Adapter]],
                  base: Mapping[str, Tensor], config: Mapping[str,
                                                              Any]) -> Adapter:
    """The adapter of the config's rank that is nearest to a weighted sum.

    Where the sum has a lower rank than that, the rest starts as LoRA does
    (arXiv 2106.09685): B is zero and A is drawn, so that it can be trained.

    Args:
        mixture (Sequence[tuple[float, Adapter]]): Weights, of sum 1, and
            adapters of one backbone with the config's rank and scaling.
        base (Mapping[str, Tensor]): The backbone's tensors by name.
        config (Mapping): Of :func:`check_lora_config`.

    Returns:
        Adapter: Of a single one a copy; else its owned norm tensors are the
        weighted means.
    """
    if len(mixture) == 1:
        return mixture[0][1].clone()
    scaling = lora_scaling(config)
    lora = cut_adapter(join_adapters(mixture), config['r'])[0].lora
    for key, value in lora.items():
        if '.lora_B' in key:
            lora[key] = value / scaling
            continue
        unused = value.flatten(1).norm(dim=1) == 0
        drawn = value.new_empty(value.shape)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))
        value[unused] = drawn[unused]
    return Adapter(lora, mix_norm(base, mixture), scaling)
