# SPDX-License-Identifier: Apache-2.0
"""Nested states as JSON and tensors, which load without running code."""
from __future__ import annotations

from typing import Any, Dict

import numpy as np
from torch import Tensor

_PLAIN = (bool, int, float, str, type(None))


def pack(value: Any, tensors: Dict[str, Tensor], path: str) -> Any:
    """JSON form of a nested state; its tensors are put into ``tensors``.

    Args:
        value (Any): Dicts, lists, tuples, numbers, strings, None, tensors.
        tensors (dict[str, Tensor]): Receives every tensor under its path.
        path (str): Where ``value`` stands.

    Raises:
        ValueError: If it holds anything else; says where.
    """
    if isinstance(value, Tensor):
        tensors[path] = value
        return dict(tensor=path)
    if isinstance(value, dict):
        # pairs, because optimizers number their parameters
        return dict(
            dict=[[pack(k, tensors, path),
                   pack(v, tensors, f'{path}/{k}')] for k, v in value.items()])
    if isinstance(value, (list, tuple)):
        items = [pack(v, tensors, f'{path}/{i}') for i, v in enumerate(value)]
        return dict(tuple=items) if isinstance(value, tuple) else items
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, _PLAIN):
        return value
    raise ValueError(f'{path} is a {type(value).__name__}, which cannot be '
                     'kept to resume from')


def unpack(value: Any, tensors: Dict[str, Tensor]) -> Any:
    """The state that :func:`pack` was given."""
    if isinstance(value, list):
        return [unpack(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    (kind, content), = value.items()
    if kind == 'tensor':
        return tensors[content]
    if kind == 'tuple':
        return tuple(unpack(v, tensors) for v in content)
    return {unpack(k, tensors): unpack(v, tensors) for k, v in content}
