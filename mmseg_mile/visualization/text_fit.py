# SPDX-License-Identifier: Apache-2.0
"""How much room a text takes, and texts cut to the room there is."""
from __future__ import annotations

from functools import lru_cache

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath


# Measuring is slow, and the same few names come again in every row.
@lru_cache(maxsize=1024)
def text_inches(text: str, size: float, bold: bool = False) -> float:
    """Width of ``text`` in a font of ``size`` points."""
    font = FontProperties(weight='bold' if bold else 'normal', size=size)
    return float(TextPath((0, 0), text, prop=font).get_extents().width) / 72


def fit_text(text: str, inches: float, size: float, bold: bool = False) -> str:
    """``text``, cut and marked by an ellipsis where it is too wide."""
    if text_inches(text, size, bold) <= inches:
        return text
    low, high = 1, len(text) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if text_inches(text[:middle] + '\u2026', size, bold) <= inches:
            low = middle
        else:
            high = middle - 1
    return text[:low] + '\u2026'
