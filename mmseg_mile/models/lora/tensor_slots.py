# SPDX-License-Identifier: Apache-2.0
"""Where the tensors of a network hang, so that others can take their place."""
from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Dict, Iterator, Tuple

from torch import Tensor, nn


class TensorSlots(Mapping):
    """A network's parameters and buffers by name, found once.

    A forward looks each tensor up in a dict of its module. Exchanging the
    entries of an expert's tensors is a dict assignment each: the module tree
    is not walked, and no tensor is written to.

    Args:
        network (nn.Module): Its modules must stay the same objects; its
            tensors may move, or be replaced.
    """

    def __init__(self, network: nn.Module) -> None:
        self._slots: Dict[str, Tuple[dict, str]] = {}
        for prefix, module in network.named_modules():
            for entries in (module._parameters, module._buffers):
                for leaf, tensor in entries.items():
                    if tensor is not None:
                        name = f'{prefix}.{leaf}' if prefix else leaf
                        self._slots[name] = (entries, leaf)

    def __getitem__(self, name: str) -> Tensor:
        entries, leaf = self._slots[name]
        return entries[leaf]

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    @contextlib.contextmanager
    def holding(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Let every forward inside the block see other tensors.

        Args:
            tensors (Mapping[str, Tensor]): By name; the rest stays.
        """
        held = [(*self._slots[name], self[name]) for name in tensors]
        try:
            for name, tensor in tensors.items():
                entries, leaf = self._slots[name]
                entries[leaf] = tensor
            yield
        finally:
            for entries, leaf, tensor in held:
                entries[leaf] = tensor
