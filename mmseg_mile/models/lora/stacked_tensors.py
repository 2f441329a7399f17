# SPDX-License-Identifier: Apache-2.0
"""Small tensors of several experts in one matrix, to be averaged at once."""
from __future__ import annotations

from typing import Dict, List, Mapping, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor

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
