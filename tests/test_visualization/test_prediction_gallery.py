# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Callable, Dict, List

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from mmseg_mile.visualization.gallery import RIGHT, UNFAMILIAR, WRONG
from mmseg_mile.visualization.prediction_gallery import draw_prediction_gallery

PALETTE = ((90, 0, 0), (0, 90, 0), (0, 0, 90))


def captions(figure: Figure) -> Dict[str, tuple]:
    return {
        text.get_text(): to_rgb(text.get_color())
        for axes in figure.axes
        for text in axes.texts
    }


def legend_names(figure: Figure) -> List[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_picture_is_written(tmp_path: Path, make_panel: Callable) -> None:
    path = draw_prediction_gallery([make_panel()], tmp_path / 'x' / 'a.png')

    assert cv2.imread(str(path)).std() > 10


def test_same_panels_give_the_same_bytes(tmp_path: Path,
                                         make_panel: Callable) -> None:
    first, second = (
        draw_prediction_gallery([make_panel()], tmp_path / name).read_bytes()
        for name in 'ab')

    assert first == second


def test_right_expert_is_green_and_wrong_one_red(tmp_path: Path,
                                                 drawn: List[Figure],
                                                 make_panel: Callable) -> None:
    draw_prediction_gallery(
        [make_panel(), make_panel(expert='night')], tmp_path / 'a.png')

    assert captions(drawn[0]) == {
        '\u2713 day': to_rgb(RIGHT),
        '\u2717 night': to_rgb(WRONG)
    }


def test_notes_tell_unfamiliar_images_and_scores(tmp_path: Path,
                                                 drawn: List[Figure],
                                                 make_panel: Callable) -> None:
    draw_prediction_gallery([make_panel(expert=None, ood=True, miou=51.27)],
                            tmp_path / 'a.png')

    notes = captions(drawn[0])
    assert set(notes) == {'ood', 'mIoU 51.3'}
    assert notes['ood'] == to_rgb(UNFAMILIAR)


def test_plain_methods_have_no_caption(tmp_path: Path, drawn: List[Figure],
                                       make_panel: Callable) -> None:
    draw_prediction_gallery([make_panel(expert=None, miou=float('nan'))],
                            tmp_path / 'a.png')

    assert not captions(drawn[0])


def test_legend_holds_what_occurs(tmp_path: Path, drawn: List[Figure],
                                  make_panel: Callable) -> None:
    draw_prediction_gallery([make_panel()], tmp_path / 'a.png')

    assert legend_names(drawn[0]) == ['road', 'sky', 'not labelled']


def test_prediction_takes_the_colour_of_the_truth_by_name(
        tmp_path: Path, drawn: List[Figure], make_panel: Callable) -> None:
    panel = make_panel(
        prediction_classes=('weed', 'road'),
        prediction_palette=((1, 2, 3), (4, 5, 6)),
        prediction=np.ones((30, 40), np.uint8))
    draw_prediction_gallery([panel], tmp_path / 'a.png')

    truth, prediction = (
        axes.images[0].get_array() for axes in drawn[0].axes[1:3])
    assert prediction[-1, -1].tolist() == truth[-1, -1].tolist() == [90, 0, 0]


def test_other_class_of_the_same_colour_looks_different(
        tmp_path: Path, drawn: List[Figure], make_panel: Callable) -> None:
    panel = make_panel(
        prediction_classes=('weed', ), prediction_palette=(PALETTE[0], ))
    draw_prediction_gallery([panel], tmp_path / 'a.png')

    truth, prediction = (
        axes.images[0].get_array() for axes in drawn[0].axes[1:3])
    assert prediction[-1, -1].tolist() != truth[-1, -1].tolist()


@pytest.mark.parametrize('count', [1, 5, 9])
def test_nothing_overlaps(tmp_path: Path, drawn: List[Figure], count: int,
                          texts_that_collide: Callable,
                          make_panel: Callable) -> None:
    name = 'a domain with quite a long name indeed'
    panels = [
        make_panel(task=name, expert=name, ood=True, miou=100.)
        for _ in range(count)
    ]
    draw_prediction_gallery(panels, tmp_path / 'a.png')

    assert not texts_that_collide(drawn[0])


def test_many_classes_fit_the_legend(tmp_path: Path, drawn: List[Figure],
                                     texts_that_collide: Callable,
                                     make_panel: Callable) -> None:
    classes = [f'class number {i}' for i in range(60)]
    palette = [(4 * i, i, 255 - i) for i in range(60)]
    panel = make_panel(
        truth_classes=classes,
        truth_palette=palette,
        truth=(np.arange(1200) % 60).reshape(30, 40))
    draw_prediction_gallery([panel], tmp_path / 'a.png')

    assert not texts_that_collide(drawn[0])
    box = drawn[0].legends[0].get_window_extent()
    assert box.y1 < drawn[0].axes[0].get_window_extent().y0


def test_no_panel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='at least one panel'):
        draw_prediction_gallery([], tmp_path / 'a.png')
