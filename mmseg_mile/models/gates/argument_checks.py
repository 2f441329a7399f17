# SPDX-License-Identifier: Apache-2.0
"""Arguments of gates that are out of range are refused by name."""
from __future__ import annotations

import math
from typing import Any, Sequence


def check_choice(field: str, value: Any, allowed: Sequence[Any]) -> None:
    """Refuse what is not one of ``allowed``.

    Raises:
        ValueError: If it is not.
    """
    if value not in allowed:
        raise ValueError(f'gate.{field} must be one of {tuple(allowed)}, got '
                         f'{value!r}')


def check_bounds(field: str,
                 value: float,
                 low: float,
                 high: float = math.inf,
                 open_low: bool = False) -> None:
    """Refuse a number that is not finite or not within bounds.

    Args:
        field (str): Of the gate.
        value (float): Its value.
        low (float): Smallest value.
        high (float): Largest value. Defaults to infinity: any finite one.
        open_low (bool): Whether ``low`` itself is refused.

    Raises:
        ValueError: If it is out of bounds.
    """
    enough = value > low if open_low else value >= low
    if enough and value <= high and math.isfinite(value):
        return
    if math.isinf(high):
        allowed = f'{">" if open_low else ">="} {low}'
    else:
        allowed = f'in {"(" if open_low else "["}{low}, {high}]'
    raise ValueError(f'gate.{field} must be {allowed}, got {value}')
