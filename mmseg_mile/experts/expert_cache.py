# SPDX-License-Identifier: Apache-2.0
"""Tensors of experts, in memory as far as a budget goes."""
from __future__ import annotations

from collections import OrderedDict
from typing import Any, Callable, Dict, List, Optional, Protocol, Tuple, Union

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
