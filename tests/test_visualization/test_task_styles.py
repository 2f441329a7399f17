# SPDX-License-Identifier: Apache-2.0
import pytest
from matplotlib.colors import to_rgb

from mmseg_mile.visualization.task_styles import (MAX_LABEL, MAX_STYLED,
                                                  name_inches, short_name,
                                                  task_styles, upright)
from mmseg_mile.visualization.text_fit import text_inches


def test_no_two_tasks_look_alike() -> None:
    styles = task_styles(MAX_STYLED)

    assert len(set(styles)) == MAX_STYLED
    for (colour, marker), (other, shape) in zip(styles, styles[1:]):
        assert colour != other
        assert marker != shape


def test_a_task_keeps_its_looks_as_the_stream_grows() -> None:
    assert task_styles(12)[:3] == task_styles(3)


def test_colours_of_a_long_stream_follow_its_order() -> None:
    styles = task_styles(300)

    assert len({colour for colour, _ in styles}) > 200
    brightness = [sum(to_rgb(styles[i][0])) for i in (0, 100, 200, 299)]
    assert brightness == sorted(brightness)


def test_long_names_are_cut() -> None:
    assert short_name('day') == 'day'
    assert text_inches(short_name('W' * 30), 9) <= MAX_LABEL
    assert name_inches('W' * 30) <= MAX_LABEL + 0.1


@pytest.mark.parametrize('cell, turned', [(2, False), (0.2, True)])
def test_names_wider_than_their_cells_are_turned(cell: float,
                                                 turned: bool) -> None:
    assert upright(['day', 'freiburg-thermal'], cell) == turned
