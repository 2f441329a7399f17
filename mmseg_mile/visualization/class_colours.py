# SPDX-License-Identifier: Apache-2.0
"""One colour per class name over the label spaces of several tasks."""
from __future__ import annotations

from typing import Dict, Iterable, Sequence, Tuple

import numpy as np

Colour = Tuple[int, int, int]
LabelSpace = Tuple[Sequence[str], Sequence[Sequence[int]]]
# Marks pixels without a label; no class may have it.
UNLABELLED: Colour = (222, 222, 222)


def choose_class_colours(
        label_spaces: Iterable[LabelSpace]) -> Dict[str, Colour]:
    """Colour per class name; the first label space with a name decides.

    Palettes of different data sets give the same colour to different
    classes. Such a class gets a lighter or darker shade, so that a wrong
    prediction never looks like a right one.

    Args:
        label_spaces (Iterable): Pairs of class names and palette.
    """
    chosen: Dict[str, Colour] = {}
    for classes, palette in label_spaces:
        for name, colour in zip(classes, palette):
            if name not in chosen:
                taken = {UNLABELLED, *chosen.values()}
                red, green, blue = map(int, colour)
                chosen[name] = _free_shade((red, green, blue), taken)
    return chosen


def paint_labels(labels: np.ndarray,
                 classes: Sequence[str],
                 colours: Dict[str, Colour],
                 ignore_index: int = 255) -> np.ndarray:
    """(H, W, 3) uint8 picture of an (H, W) label map."""
    table = np.array([*(colours[name] for name in classes), UNLABELLED],
                     dtype=np.uint8)
    return table[np.where(labels == ignore_index, len(classes), labels)]


def hex_colour(colour: Colour) -> str:
    """``#rrggbb``, as matplotlib and web pages write a colour."""
    return '#{:02x}{:02x}{:02x}'.format(*colour)


def _free_shade(colour: Colour, taken: Iterable[Colour]) -> Colour:
    shades = [colour]
    for strength in (0.4, 0.6, 0.2, 0.3, 0.5, 0.7):
        # Mixed with white, then with black.
        shades += [_mix(colour, 255, strength), _mix(colour, 0, strength)]
    return next((s for s in shades if s not in taken), colour)


def _mix(colour: Colour, other: int, strength: float) -> Colour:
    red, green, blue = (round(c + (other - c) * strength) for c in colour)
    return red, green, blue
