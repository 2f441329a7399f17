# SPDX-License-Identifier: Apache-2.0
"""The adapters of all experts, and their merged weights while in use."""
from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import (Any, Callable, Dict, Hashable, Iterable, Iterator, List,
                    Optional, Protocol, Tuple)

import torch
from torch import Tensor, nn

from mmseg_mile.structures.expert import TensorDict
from .adapter import Adapter, AdapterStack

Names = Tuple[str, ...]
Mixture = Tuple[Tuple[str, float], ...]
_Stamp = List[Tuple[int, int]]


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


Key = Tuple[str, Hashable]


class Part(Protocol):
    """A part of an expert, such as its adapter or its head."""

    def num_bytes(self) -> int:
        """Memory that its tensors take."""


class ExpertCache:
    """Parts of experts by (kind, name), loaded when they are first used.

    A part that can be loaded again leaves, least recently used first, while
    all parts together take more than the budget. One that exists in memory
    only never leaves, and neither does the one that was used last.

    Args:
        budget_mb (float, optional): In MiB; None for no limit.

    Raises:
        ValueError: If the budget is negative.
    """

    def __init__(self, budget_mb: Optional[float] = None) -> None:
        if budget_mb is not None and budget_mb < 0:
            raise ValueError('memory_budget_mb must be at least 0, or None '
                             f'for no limit, got {budget_mb}')
        self._budget = math.inf if budget_mb is None else budget_mb * 2**20
        self._parts: OrderedDict[Key, Any] = OrderedDict()
        self._sizes: Dict[Key, int] = {}
        self._loaders: Dict[Key, Callable[[], Any]] = {}

    @property
    def num_bytes(self) -> int:
        """int: Memory that the loaded parts take."""
        return sum(self._sizes.values())

    def __contains__(self, key: Key) -> bool:
        return key in self._parts or key in self._loaders

    def __getitem__(self, key: Key) -> Any:
        if key not in self._parts:
            self._hold(key, self._loaders[key]())
        self._parts.move_to_end(key)
        return self._parts[key]

    def __setitem__(self, key: Key, part: Part) -> None:
        """Keep a part that exists in memory only."""
        del self[key]
        self._hold(key, part)

    def __delitem__(self, key: Key) -> None:
        self._drop(key)
        self._loaders.pop(key, None)

    def defer(self, key: Key, load: Callable[[], Part]) -> None:
        """Load a part when it is first used, instead of one that is held."""
        del self[key]
        self._loaders[key] = load

    def release(self, key: Key, load: Callable[[], Part]) -> None:
        """Let a part leave that ``load`` can bring back as it is."""
        self._loaders[key] = load
        self._shrink()

    def _hold(self, key: Key, part: Part) -> None:
        self._parts[key] = part
        self._sizes[key] = part.num_bytes()
        self._shrink()

    def _drop(self, key: Key) -> None:
        self._parts.pop(key, None)
        self._sizes.pop(key, None)

    def _shrink(self) -> None:
        excess = self.num_bytes - self._budget
        for key in list(self._parts)[:-1] if excess > 0 else ():
            if key in self._loaders and excess > 0:
                excess -= self._sizes[key]
                self._drop(key)


class AdapterLibrary:
    """Named adapters with a bounded cache of merged weights.

    Merged weights are made anew when the base's have changed since. Where
    the same experts are mixed with ever other weights, their factors are
    kept side by side, see :class:`AdapterStack`.

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
        self.cache = ExpertCache(memory_budget_mb)
        self._size = merge_cache_size
        self._names: Dict[str, None] = {}
        # merged weights, and the state of the base that they were made of
        self._merged: OrderedDict[Mixture, Tuple[TensorDict,
                                                 _Stamp]] = OrderedDict()
        self._sets: OrderedDict[Names, None] = OrderedDict()

    @property
    def names(self) -> Names:
        """tuple[str]: Experts in the order in which they were added."""
        return tuple(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> Adapter:
        return self.cache[self._key(name)]

    def __setitem__(self, name: str, adapter: Adapter) -> None:
        self._renew(name)
        self.cache['adapter', name] = adapter

    def __delitem__(self, name: str) -> None:
        del self.cache[self._key(name)]
        self._renew(name)
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
        self._renew(name)
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
               base: Mapping[str, Tensor]) -> TensorDict:
        """Weights of a mixture of experts, see :meth:`AdapterStack.merge`.

        Args:
            mixture (Mapping[str, float]): Weight of each expert.
            base (Mapping[str, Tensor]): The frozen backbone's tensors.

        Returns:
            dict[str, Tensor]: Entries that differ from the base.
        """
        key = tuple(sorted(mixture.items()))
        tensors, stamp = self._merged.get(key, ({}, None))
        if stamp != _stamp(tensors, base):
            stack = self._stack(tuple(name for name, _ in key))
            # autocast would round the product of A and B, which is kept
            kind = next(iter(base.values())).device.type
            with torch.no_grad(), torch.autocast(kind, enabled=False):
                tensors = stack.merge(base, [weight for _, weight in key])
            self._merged[key] = (tensors, _stamp(tensors, base))
            if len(self._merged) > self._size:
                self._merged.popitem(last=False)
        self._merged.move_to_end(key)
        return tensors

    def _stack(self, names: Names) -> AdapterStack:
        """Factors of experts; of several that come again soon, kept ones."""
        if len(names) == 1:
            return self._new_stack(names)
        key = ('stack', names)
        if names in self._sets and key not in self.cache:
            self.cache.defer(key, partial(self._new_stack, names))
        self._sets[names] = None
        self._sets.move_to_end(names)
        if len(self._sets) > self._size:
            del self.cache['stack', self._sets.popitem(last=False)[0]]
        return self.cache[key] if key in self.cache else self._new_stack(names)

    def _new_stack(self, names: Names) -> AdapterStack:
        return AdapterStack([self[name] for name in names])

    def _key(self, name: str) -> Key:
        if name not in self._names:
            raise ValueError(
                f'unknown expert {name!r}; experts: {list(self._names)}')
        return ('adapter', name)

    def _renew(self, name: str) -> None:
        """Add an expert, and forget what was made of one of its name."""
        self._names[name] = None
        for key in [k for k in self._merged if name in dict(k)]:
            del self._merged[key]
        for names in [n for n in self._sets if name in n]:
            del self._sets[names], self.cache['stack', names]


def _stamp(merged: TensorDict, base: Mapping[str, Tensor]) -> _Stamp:
    """Changes when a tensor that was merged into is moved or written to."""
    return [(base[key].data_ptr(), base[key]._version) for key in merged]
