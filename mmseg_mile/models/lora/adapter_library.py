# SPDX-License-Identifier: Apache-2.0
"""The adapters of all experts, and their merged weights while in use."""
from __future__ import annotations

from collections import OrderedDict
from typing import (Callable, Dict, Iterable, List, Mapping, NamedTuple,
                    Optional, Sequence, Tuple)

import torch
from torch import Tensor

from mmseg_mile.experts.expert_cache import ExpertCache, Key
from .adapter import Adapter
from .merging import merge_adapters
from .stacked_adapters import StackedAdapters


class _Merged(NamedTuple):
    tensors: Dict[str, Tensor]
    stamp: List[Tuple[int, int]]


class AdapterLibrary:
    """Named adapters with a bounded cache of merged weights.

    Merged weights are made anew when the base's have changed since. Where
    the same experts are mixed with ever other weights, their factors are
    kept side by side, see :class:`StackedAdapters`.

    Args:
        merge_cache_size (int): Merged weight sets kept, least recently used
            dropped first; and sets of experts whose factors are.
        memory_budget_mb (float, optional): Of the :attr:`cache` that holds
            the adapters' tensors. Defaults to None: no limit.
    """

    def __init__(self,
                 merge_cache_size: int,
                 memory_budget_mb: Optional[float] = None) -> None:
        if merge_cache_size < 1:
            raise ValueError('merge_cache_size must be at least 1, got '
                             f'{merge_cache_size}')
        self.cache = ExpertCache(memory_budget_mb, merge_cache_size)
        self._names: Dict[str, None] = {}
        self._merged: OrderedDict = OrderedDict()
        self._merge_cache_size = merge_cache_size

    @property
    def names(self) -> Tuple[str, ...]:
        """tuple[str]: Experts in the order in which they were added."""
        return tuple(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> Adapter:
        return self.cache[self._key(name)]

    def __setitem__(self, name: str, adapter: Adapter) -> None:
        self._forget_merged(name)
        self._names[name] = None
        self.cache[self._key(name)] = adapter

    def __delitem__(self, name: str) -> None:
        del self.cache[self._key(name)]
        self._forget_merged(name)
        del self._names[name]

    def require(self, names: Iterable[str]) -> None:
        """Raise unless all are experts; nothing is loaded.

        Raises:
            ValueError: Naming the first that is unknown.
        """
        for name in names:
            self._key(name)

    def defer(self, name: str, load: Callable[[], Adapter]) -> None:
        """Take over an adapter that is loaded when it is first used."""
        self._forget_merged(name)
        self._names[name] = None
        self.cache.defer(self._key(name), load)

    def release(self, name: str, load: Callable[[], Adapter]) -> None:
        """Let an adapter leave memory that ``load`` can bring back."""
        self.cache.release(self._key(name), load)

    def copy_norms(self, base: Mapping[str, Tensor]) -> None:
        """Renew owned norm layers from a base that was just trained.

        Until then its experts equalled the base, and so they go on.
        """
        for name in self.names:
            adapter = self[name]
            norm = {k: base[k].detach().clone() for k in adapter.norm}
            self[name] = Adapter(adapter.lora, norm, adapter.scaling)

    def merged(self, mixture: Mapping[str, float],
               base: Mapping[str, Tensor]) -> Dict[str, Tensor]:
        """Weights of a mixture of experts, see :func:`merge_adapters`.

        Args:
            mixture (Mapping[str, float]): Weight of each expert.
            base (Mapping[str, Tensor]): The frozen backbone's tensors.

        Returns:
            dict[str, Tensor]: Entries that differ from the base.
        """
        self.require(mixture)
        key = tuple(sorted(mixture.items()))
        if key not in self._merged or (self._merged[key].stamp != _stamp(
                self._merged[key].tensors, base)):
            # autocast would round the product of A and B, which is kept
            kind = next(iter(base.values())).device.type
            with torch.no_grad(), torch.autocast(kind, enabled=False):
                tensors = self._merge(key, base)
            self._merged[key] = _Merged(tensors, _stamp(tensors, base))
            while len(self._merged) > self._merge_cache_size:
                self._merged.popitem(last=False)
        self._merged.move_to_end(key)
        return self._merged[key].tensors

    def _merge(self, mixture: Sequence[Tuple[str, float]],
               base: Mapping[str, Tensor]) -> Dict[str, Tensor]:
        names = tuple(name for name, _ in mixture)
        stack = None
        if len(names) > 1:
            stack = self.cache.joint('adapter', names, StackedAdapters)
        if stack is None:
            return merge_adapters(base, [(w, self[n]) for n, w in mixture])
        return stack.merged([weight for _, weight in mixture], base)

    def _key(self, name: str) -> Key:
        if name not in self._names:
            raise ValueError(
                f'unknown expert {name!r}; experts: {list(self._names)}')
        return ('adapter', name)

    def _forget_merged(self, name: str) -> None:
        for key in [k for k in self._merged if name in dict(k)]:
            del self._merged[key]


def _stamp(merged: Mapping[str, Tensor],
           base: Mapping[str, Tensor]) -> List[Tuple[int, int]]:
    """Changes when a tensor that was merged into is moved or written to."""
    return [(base[key].data_ptr(), base[key]._version) for key in merged]
