# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from mmseg_mile.visualization.panel import Panel
from mmseg_mile.visualization.routing_cost import (draw_routing_cost,
                                                   figure_routing_cost)


@pytest.fixture
def make_costly(make_panel: Callable) -> Callable[..., Panel]:
    """Fixture: a panel of the day, predicted by the expert of the night."""

    def make(**changes: Any) -> Panel:
        values = dict(
            expert='night',
            miou=40.0,
            oracle=np.ones((30, 40), int),
            oracle_classes=('weed', 'sky'),
            oracle_palette=((9, 9, 9), (8, 8, 8)),
            oracle_miou=52.5)
        return make_panel(**{**values, **changes})

    return make


def test_row_compares_both_experts(make_costly: Callable) -> None:
    axes = figure_routing_cost([make_costly()]).axes
    captions = [[t.get_text() for t in ax.texts] for ax in axes]

    assert captions == [['12.5 points lost'], [], ['✗ night', 'mIoU 40.0'],
                        ['✓ day', 'mIoU 52.5']]


def test_own_expert_is_painted_in_the_colours_of_the_truth(
        make_costly: Callable) -> None:
    axes = figure_routing_cost([make_costly()]).axes

    assert axes[3].images[0].get_array()[0, 0].tolist() == [0, 90, 0]


def test_legend_holds_what_the_own_expert_predicts(
        make_costly: Callable) -> None:
    panel = make_costly(oracle=np.zeros((30, 40), int))
    legend = figure_routing_cost([panel]).legends[0]

    assert [t.get_text() for t in legend.get_texts()
            ] == ['road', 'sky', 'weed', 'not labelled']


@pytest.mark.parametrize('count', [1, 6, 9])
def test_nothing_overlaps(make_costly: Callable, count: int,
                          texts_that_collide: Callable) -> None:
    name = 'a domain with quite a long name indeed'
    panels = [make_costly(task=name, expert=name + '!', ood=True, miou=100.0)
              ] * count

    assert not texts_that_collide(figure_routing_cost(panels))


def test_same_panels_give_the_same_bytes(make_costly: Callable,
                                         tmp_path: Path) -> None:
    first, second = (
        draw_routing_cost([make_costly()], tmp_path / name).read_bytes()
        for name in ('a.png', 'b.png'))

    assert first == second


def test_panel_without_the_own_expert_is_refused(
        make_panel: Callable, make_costly: Callable) -> None:
    with pytest.raises(ValueError, match=r'panels\[1\].oracle is None'):
        figure_routing_cost([make_costly(), make_panel()])


def test_no_panel_is_refused() -> None:
    with pytest.raises(ValueError, match='at least one panel'):
        figure_routing_cost([])
