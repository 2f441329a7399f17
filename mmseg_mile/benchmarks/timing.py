# SPDX-License-Identifier: Apache-2.0
"""Time of contenders side by side."""
from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping

import numpy as np

from .settings import Settings

Runs = Mapping[str, Callable[[], Any]]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""
    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: List[float]) -> 'Spread':
        """Of at least one value."""
        lower, median, upper = np.quantile(values, (0.25, 0.5, 0.75))
        return cls(float(median), float(lower), float(upper))


def interleaved_seconds(runs: Runs,
                        settings: Settings) -> Dict[str, List[float]]:
    """Time every run once per round, each round starting with another.

    What slows the machine down for a while then hits all of them, and no
    run always follows the same one.

    Args:
        runs (Mapping[str, Callable]): Contenders by name.
        settings (Settings): Number of rounds and of untimed runs.

    Returns:
        dict[str, list[float]]: Seconds per round.
    """
    seconds: Dict[str, List[float]] = {name: [] for name in runs}
    for _ in range(settings.warmup):
        for run in runs.values():
            run()
    names = list(runs)
    for index in range(settings.rounds):
        start = index % len(names)
        for name in names[start:] + names[:start]:
            settings.synchronise()
            begin = time.perf_counter()
            runs[name]()
            settings.synchronise()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratios(seconds: Mapping[str, List[float]],
           reference: str) -> Dict[str, Spread]:
    """Of each contender to ``reference``, round by round.

    Args:
        seconds (Mapping[str, list[float]]): From
            :func:`interleaved_seconds`.
        reference (str): The contender that counts as 1.
    """
    return {
        name: Spread.of([a / b for a, b in zip(values, seconds[reference])])
        for name, values in seconds.items()
    }
