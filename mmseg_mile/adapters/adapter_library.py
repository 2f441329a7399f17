# SPDX-License-Identifier: Apache-2.0
"""The adapters of all experts, and their merged weights while in use."""
from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import (Any, Callable, Dict, Iterable, Iterator, List, NamedTuple,
                    Optional, Protocol, Sequence, Tuple, Union)

import torch
from torch import Tensor, nn

from .adapter import Adapter, StackedAdapters, merge_adapters


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


Key = Tuple[str, str]
Names = Tuple[str, ...]
_AnyKey = Tuple[str, Union[str, Names]]


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
        num_sets (int): Sets of experts whose :meth:`joint` parts are kept,
            of each kind. Defaults to 4.

    Raises:
        ValueError: If the budget is negative.
    """

    def __init__(self,
                 budget_mb: Optional[float] = None,
                 num_sets: int = 4) -> None:
        if budget_mb is not None and budget_mb < 0:
            raise ValueError('memory_budget_mb must be at least 0, or None '
                             f'for no limit, got {budget_mb}')
        self._budget = None if budget_mb is None else budget_mb * 2**20
        self._num_sets = num_sets
        self._parts: OrderedDict[_AnyKey, Any] = OrderedDict()
        self._sizes: Dict[_AnyKey, int] = {}
        self._loaders: Dict[_AnyKey, Callable[[], Any]] = {}
        self._sets: Dict[str, OrderedDict[Names, None]] = {}

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
        kind, name = key
        for names in [n for n in self._sets.get(kind, ()) if name in n]:
            self._forget_set(kind, names)

    def defer(self, key: Key, load: Callable[[], Part]) -> None:
        """Load a part when it is first used, instead of one that is held."""
        del self[key]
        self._loaders[key] = load

    def release(self, key: Key, load: Callable[[], Part]) -> None:
        """Let a part leave that ``load`` can bring back as it is."""
        self._loaders[key] = load
        self._shrink()

    def joint(self, kind: str, names: Names, combine: Callable[[List[Any]],
                                                               Part]) -> Any:
        """A part made of those of several experts, while it pays to keep it.

        A set of experts is worth a part of its own once it comes again among
        the last sets. The part counts towards the budget, leaves like one
        that can be loaded, and is forgotten when one of its experts changes.

        Args:
            kind (str): Of the parts that it is made of.
            names (tuple[str]): The experts, in the order of ``combine``.
            combine (Callable): Makes it of their parts.

        Returns:
            Part | None: None for a set that is new. One that is larger than
            the budget is made each time.
        """
        sets = self._sets.setdefault(kind, OrderedDict())
        again = names in sets
        sets[names] = None
        sets.move_to_end(names)
        if len(sets) > self._num_sets:
            self._forget_set(kind, next(iter(sets)))
        key = (kind, names)
        if key in self._parts:
            self._parts.move_to_end(key)
            return self._parts[key]
        if not again:
            return None
        part = combine([self[kind, name] for name in names])
        if self._budget is None or part.num_bytes() <= self._budget:
            self._hold(key, part)
        return part

    def _forget_set(self, kind: str, names: Names) -> None:
        del self._sets[kind][names]
        self._drop((kind, names))

    def _drop(self, key: _AnyKey) -> None:
        self._parts.pop(key, None)
        self._sizes.pop(key, None)

    def _hold(self, key: _AnyKey, part: Part) -> None:
        self._parts[key] = part
        self._parts.move_to_end(key)
        self._sizes[key] = part.num_bytes()
        self._shrink()

    def _shrink(self) -> None:
        if self._budget is None:
            return
        excess = self.num_bytes - self._budget
        for key in list(self._parts)[:-1]:
            if excess <= 0:
                break
            if key in self._loaders or not isinstance(key[1], str):
                excess -= self._sizes[key]
                self._drop(key)


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
