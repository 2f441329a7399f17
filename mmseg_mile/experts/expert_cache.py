# SPDX-License-Identifier: Apache-2.0
"""Tensors of experts, in memory as far as a budget goes."""
from __future__ import annotations

from collections import OrderedDict
from typing import Any, Callable, Dict, Optional, Protocol, Tuple

Key = Tuple[str, str]


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
        self._budget = None if budget_mb is None else budget_mb * 2**20
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
        self._loaders.pop(key, None)
        self._hold(key, part)

    def __delitem__(self, key: Key) -> None:
        self._parts.pop(key, None)
        self._sizes.pop(key, None)
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
            if key in self._loaders:
                del self._parts[key]
                excess -= self._sizes.pop(key)
