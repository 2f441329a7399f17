# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb

from mmseg_mile.visualization.heat_map import (add_title, draw_heat_map,
                                               heat_map_figure)

SCALE = ScalarMappable(Normalize(0, 100), colormaps['viridis'])


def draw(values: np.ndarray) -> list:
    names = [f'task {i}' for i in range(len(values))]
    _, (axes, ), _ = heat_map_figure(names, 1)
    texts = np.array([[f'{v:.0f}' for v in row] for row in values])
    draw_heat_map(axes, values, texts, names, SCALE)
    return axes.texts


def test_cells_hold_their_numbers_and_missing_ones_stay_blank() -> None:
    texts = draw(np.array([[60, np.nan], [50, 70]]))

    assert {(t.get_position(), t.get_text())
            for t in texts} == {((0, 0), '60'), ((0, 1), '50'), ((1, 1), '70')}


def test_numbers_stand_out_from_their_cells() -> None:
    dark, bright = draw(np.array([[5, np.nan], [np.nan, 95]]))

    assert to_rgb(dark.get_color()) == (1, 1, 1)
    assert to_rgb(bright.get_color()) == (0, 0, 0)


def test_long_streams_leave_out_the_numbers() -> None:
    assert not draw(np.full((30, 30), 50.0))


def test_panels_are_square() -> None:
    figure, panels, _ = heat_map_figure(['a', 'much longer name'], 2)
    width, height = figure.get_size_inches()

    for axes in panels:
        box = axes.get_position()
        assert box.width * width == pytest.approx(box.height * height)


def test_long_title_is_made_to_fit(texts_that_collide: object) -> None:
    figure, panels, _ = heat_map_figure(['a', 'b'], 1)
    add_title(figure, panels, 'a method with a long name on ' * 4)

    assert not texts_that_collide(figure)
