# SPDX-License-Identifier: Apache-2.0
"""Label files that hold more than mmseg reads of them."""
from __future__ import annotations

from typing import Any

import cv2
import numpy as np

_PNG = b'\x89PNG\r\n\x1a\n'
_DEPTH_AT = 24


def check_label_depth(path: Any) -> None:
    """Refuse a 16-bit PNG with values that would be cut to 8 bits.

    mmseg casts labels to uint8, which turns 256 into class 0 without a word.
    Files that no local path leads to are not looked at.

    Args:
        path (Any): Of the label map.

    Raises:
        ValueError: Naming the file and the values.
    """
    try:
        with open(path, 'rb') as file:
            head = file.read(_DEPTH_AT + 1)
    except (OSError, TypeError):
        return
    if not head.startswith(_PNG) or head[_DEPTH_AT:] != b'\x10':
        return
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if values is not None and values.max() > 255:
        raise ValueError(
            f'label {str(path)!r} has 16 bits and holds '
            f'{np.unique(values[values > 255])[:5].tolist()}, but mmseg reads '
            'labels as 8 bits: values must be below 256. Convert the labels '
            '(tools/dataset_converters).')
