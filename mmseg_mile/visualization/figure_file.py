# SPDX-License-Identifier: Apache-2.0
"""Figures without pyplot: no global state, no display, same bytes again."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Union

import matplotlib
from matplotlib.figure import Figure

PathLike = Union[str, 'os.PathLike[str]']
DPI = 150


def new_figure(width: float, height: float, **kwargs: Any) -> Figure:
    """White figure of ``width`` x ``height`` inches."""
    return Figure(
        figsize=(width, height), dpi=DPI, facecolor='white', **kwargs)


def save_figure(figure: Figure, path: PathLike) -> Path:
    """Write a PNG; the same figure gives the same bytes.

    Missing folders are created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A user's matplotlibrc may ask for another dpi or a tight bounding box.
    with matplotlib.rc_context({'savefig.bbox': None}):
        figure.savefig(
            path, format='png', dpi=DPI, metadata={'Software': None})
    return path
