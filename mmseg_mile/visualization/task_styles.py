# SPDX-License-Identifier: Apache-2.0
"""One colour and one marker per task, the same in every picture."""
from __future__ import annotations

from typing import List, Sequence, Tuple

from matplotlib import colormaps
from matplotlib.colors import to_hex

from .text_fit import fit_text, text_inches

# Beyond this many tasks no set of colours can be told apart.
MAX_STYLED = 24
LABEL_SIZE = 9
# Inches that a task's name may take.
MAX_LABEL = 1.3
# Told apart with any common colour blindness (Okabe and Ito 2008, without
# black and yellow; wine and olive after Tol).
_COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9',
            '#882255', '#7a7a2e')
# Seven and eight have no common divisor: 56 pairs, neighbours differ in both.
_MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')


def task_styles(num_tasks: int) -> List[Tuple[str, str]]:
    """Colour and marker per task, in the stream's order.

    More than ``MAX_STYLED`` tasks get a sequence of colours by their place
    in the stream, and dots.
    """
    if num_tasks > MAX_STYLED:
        # the bright end of the map does not show on white
        places = [0.9 * i / (num_tasks - 1) for i in range(num_tasks)]
        return [(to_hex(colormaps['viridis'](p)), 'o') for p in places]
    return [(_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)])
            for i in range(num_tasks)]


def short_name(name: str) -> str:
    """A task's name, cut where it would take too much room."""
    return fit_text(name, MAX_LABEL, LABEL_SIZE)


def name_inches(name: str) -> float:
    """Room that a task's name takes beside a picture."""
    return text_inches(short_name(name), LABEL_SIZE) + 0.08


def upright(names: Sequence[str], cell: float) -> bool:
    """Whether a name is too wide for its ``cell`` inches on the x axis."""
    return any(name_inches(name) > 0.9 * cell for name in names)
