# SPDX-License-Identifier: Apache-2.0
from typing import Callable

import pytest

from mmseg_mile.visualization.gallery import (RIGHT, WRONG, Caption, Column,
                                              expert_caption, figure_gallery,
                                              score_caption)


def test_columns_show_what_they_name(make_panel: Callable) -> None:
    columns = (Column('Labels', 'truth', right=lambda p: Caption(p.task)),
               Column('Scene', 'image'))
    figure = figure_gallery([make_panel()], columns)
    labels, scene = figure.axes

    assert [t.get_text() for t in figure.texts[:2]] == ['Labels', 'Scene']
    assert labels.images[0].get_array()[-1, 0].tolist() == [90, 0, 0]
    assert scene.images[0].get_array()[-1, 0].tolist() == [128] * 3
    assert [t.get_text() for t in labels.texts] == ['day']


def test_legend_leaves_out_what_no_column_shows(make_panel: Callable) -> None:
    figure = figure_gallery([make_panel()], (Column('P', 'prediction'), ))

    assert [t.get_text() for t in figure.legends[0].get_texts()] == ['road']


@pytest.mark.parametrize('expert, colour', [('day', RIGHT), ('night', WRONG)])
def test_experts_are_marked(expert: str, colour: str) -> None:
    caption = expert_caption('day', expert)

    assert caption is not None
    assert caption.colour == colour
    assert caption.text.endswith(expert)


@pytest.mark.parametrize('miou', [None, float('nan')])
def test_unknown_scores_have_no_caption(miou: object) -> None:
    assert score_caption(miou) is None  # type: ignore[arg-type]
