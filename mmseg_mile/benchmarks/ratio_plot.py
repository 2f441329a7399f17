# SPDX-License-Identifier: Apache-2.0
"""Ratios as bars, with the goals beside them."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from matplotlib import colormaps
from matplotlib.axes import Axes

from mmseg_mile.visualization.plots import new_figure, save_figure

_BAR_INCHES = 0.3
_WIDTH = 8.0


class Bar(NamedTuple):
    """One bar.

    Args:
        group (str): Bars of a group stand together, most often a model.
        label (str): Which contender; has one colour in all groups.
        value (float, optional): Length; None where there is no figure.
        lower (float, optional): Lower quartile.
        upper (float, optional): Upper quartile.
        goal (float, optional): Where a mark is drawn.
    """
    group: str
    label: str
    value: Optional[float]
    lower: Optional[float] = None
    upper: Optional[float] = None
    goal: Optional[float] = None


def draw_ratios(bars: Sequence[Bar], axis: str, title: str,
                path: Path) -> Path:
    """Horizontal bars, one group per model; a red mark is the goal.

    Args:
        bars (Sequence[Bar]): From top to bottom.
        axis (str): What the length means.
        title (str): Of the figure.
        path (Path): PNG to write.
    """
    groups: Dict[str, List[Bar]] = {}
    for bar in bars:
        groups.setdefault(bar.group, []).append(bar)
    labels = list(dict.fromkeys(bar.label for bar in bars))
    colours = {x: colormaps['Set2'](i % 8) for i, x in enumerate(labels)}
    slots = len(bars) + len(groups)
    figure = new_figure(_WIDTH, 1.5 + _BAR_INCHES * slots)
    axes = figure.subplots()
    longest = max([b.value for b in bars if b.value is not None] +
                  [b.goal for b in bars if b.goal is not None] + [1e-9])
    position, ticks = 0.0, []
    for group, members in groups.items():
        axes.text(
            0.005 * longest, position, group, fontweight='bold', va='center')
        for bar in members:
            position += 1
            _draw_bar(axes, position, bar, colours[bar.label], longest)
            ticks.append((position, bar.label))
        position += 1
    axes.set_yticks([p for p, _ in ticks], [label for _, label in ticks])
    axes.set_ylim(position - 0.3, -0.7)
    axes.set_xlim(0, 1.3 * longest)
    axes.set_xlabel(axis)
    axes.set_title(title, fontsize=10, wrap=True)
    axes.spines[['top', 'right']].set_visible(False)
    return save_figure(figure, path)


def _draw_bar(axes: Axes, position: float, bar: Bar, colour: Any,
              longest: float) -> None:
    if bar.value is None:
        axes.text(
            0.01 * longest,
            position,
            'no figure, see the table',
            va='center',
            color='grey')
        return
    axes.barh(position, bar.value, height=0.8, color=colour)
    end = bar.value
    if bar.lower is not None and bar.upper is not None:
        axes.plot([bar.lower, bar.upper], [position] * 2, color='black', lw=1)
        end = max(end, bar.upper)
    if bar.goal is not None:
        axes.plot(
            [bar.goal] * 2, [position - 0.48, position + 0.48],
            color='red',
            lw=2)
        end = max(end, bar.goal)
    goal = '' if bar.goal is None else f'   (goal {bar.goal:#.3g})'
    axes.text(
        end + 0.01 * longest,
        position,
        f'{bar.value:#.3g}{goal}',
        va='center',
        fontsize=9)
