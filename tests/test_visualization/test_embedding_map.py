# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure

from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.evaluation.routing_log import RoutedImage
from mmseg_mile.visualization.embedding_map import (WRONG, draw_embedding_map,
                                                    figure_embedding_map,
                                                    has_embedding_map)
from mmseg_mile.visualization.task_styles import task_styles

NAMES = ['day', 'dusk', 'fog']
CORNERS = np.array([[0., 0.], [6., 0.], [0., 8.]])


def make_image(task: str, place: tuple, **changes: Any) -> RoutedImage:
    lengths = np.linalg.norm(CORNERS - place, axis=1)
    values: Dict[str, Any] = dict(
        expert=task, distances=dict(zip(NAMES, lengths.tolist())))
    return RoutedImage('fog', task, 'Set', 'a.png', **{**values, **changes})


@pytest.fixture
def results() -> StreamResults:
    results = StreamResults.new('city', 'MILE', 0, NAMES)
    results.set_prototype_distances(
        np.linalg.norm(CORNERS[:, None] - CORNERS[None], axis=-1))
    return results


IMAGES = [make_image('day', (1, 1)), make_image('dusk', (5, 1))]


def points(figure: Figure) -> List[tuple]:
    """Collections of points: coordinates, fill and edge."""
    return [(np.asarray(c.get_offsets()), c.get_facecolors(),
             c.get_edgecolors()) for c in figure.axes[0].collections]


def test_images_lie_where_their_distances_say(results: StreamResults) -> None:
    drawn = points(figure_embedding_map(results, IMAGES))
    images = np.concatenate([drawn[0][0], drawn[1][0]])
    prototypes = np.concatenate([place for place, _, _ in drawn[2:]])

    assert np.linalg.norm(images[0] - images[1]) == pytest.approx(4, abs=1e-3)
    assert np.linalg.norm(images[0] - prototypes[0]) == pytest.approx(
        2**0.5, abs=1e-3)


def test_plane_has_one_scale(results: StreamResults) -> None:
    figure = figure_embedding_map(results, IMAGES)
    axes = figure.axes[0]
    box = axes.get_window_extent()

    assert box.width / np.ptp(axes.get_xlim()) == pytest.approx(
        box.height / np.ptp(axes.get_ylim()))


def test_colour_is_the_true_task(results: StreamResults) -> None:
    images = [make_image('dusk', (5, 1), expert='day')]
    _, fill, _ = points(figure_embedding_map(results, images))[0]

    assert to_hex(fill[0]) == task_styles(3)[1][0]


def test_unfamiliar_images_are_hollow(results: StreamResults) -> None:
    images = [make_image('day', (1, 1), ood=True)]
    _, fill, edge = points(figure_embedding_map(results, images))[0]

    assert len(fill) == 0
    assert to_hex(edge[0]) == task_styles(3)[0][0]


def test_wrong_expert_is_crossed_out(results: StreamResults) -> None:
    wrong = make_image('day', (5, 1), expert='dusk')
    drawn = points(figure_embedding_map(results, [*IMAGES, wrong]))
    crossed = [
        place for place, _, edge in drawn
        if len(edge) and tuple(edge[0]) == to_rgba(WRONG)
    ]

    assert [len(place) for place in crossed] == [1]
    assert not any(
        tuple(edge[0]) == to_rgba(WRONG)
        for _, _, edge in points(figure_embedding_map(results, IMAGES)))


def test_task_without_an_expert_is_not_wrong(results: StreamResults) -> None:
    results = StreamResults.new('city', 'MILE', 0, [*NAMES, 'rain'])
    results.set_prototype_distances(
        np.linalg.norm(CORNERS[:, None] - CORNERS[None], axis=-1))
    images = [*IMAGES, make_image('rain', (2, 2), expert='day')]
    figure = figure_embedding_map(results, images)

    entries = [t.get_text() for t in figure.legends[0].get_texts()]
    assert entries == ['day', 'dusk', 'fog', 'rain (not learned)', 'prototype']


def test_caption_tells_how_much_is_shown(results: StreamResults) -> None:
    texts = ' '.join(t.get_text()
                     for t in figure_embedding_map(results, IMAGES).texts)

    assert '100 % of the variance between the prototypes' in texts
    assert "100 % of the images' variance" in texts


def test_two_experts_make_a_strip() -> None:
    results = StreamResults.new('city', 'MILE', 0, NAMES[:2])
    results.set_prototype_distances([[0, 6], [6, 0]])
    # 4 above the middle of the line
    image = make_image('day', (3, 4), distances=dict(day=5, dusk=5))
    figure = figure_embedding_map(results, [image])

    place, _, _ = points(figure)[0]
    assert place[0].tolist() == pytest.approx([0, 4])
    assert figure.axes[0].get_ylabel() == 'distance from that line'
    assert figure.axes[0].get_ylim()[0] == 0


def test_images_without_all_distances_are_left_out(
        results: StreamResults) -> None:
    early = make_image('day', (1, 1), distances=dict(day=1.0))
    drawn = points(figure_embedding_map(results, [*IMAGES, early]))

    assert sum(len(place) for place, _, _ in drawn) == 2 + 3


def one_expert() -> StreamResults:
    results = StreamResults.new('s', 'm', 0, NAMES)
    results.set_prototype_distances([[0]])
    return results


@pytest.mark.parametrize('unfit', [
    lambda results: (results, []), lambda results:
    (results, [make_image('day', (1, 1), distances={})]), lambda results:
    (StreamResults.new('s', 'm', 0, NAMES), IMAGES), lambda results:
    (one_expert(), IMAGES)
])
def test_what_cannot_be_mapped_is_refused(results: StreamResults,
                                          unfit: Callable) -> None:
    assert has_embedding_map(results, IMAGES)
    few = unfit(results)

    assert not has_embedding_map(*few)
    with pytest.raises(ValueError, match='a map needs two different'):
        figure_embedding_map(*few)


@pytest.mark.parametrize('size', [2, 3, 5, 12, 24, 30])
def test_nothing_overlaps(size: int, texts_that_collide: Callable) -> None:
    rng = np.random.default_rng(0)
    names = [f'a rather long name {i}' for i in range(size)]
    places = rng.normal(0, 9, (size, 8))
    results = StreamResults.new('city', 'MILE', 0, names)
    lengths = np.linalg.norm(places[:, None] - places[None], axis=-1)
    results.set_prototype_distances(lengths)
    images = [
        RoutedImage('x', name, 'Set', 'a.png', names[0], {},
                    dict(zip(names, row.tolist())), True)
        for name, row in zip(names, lengths + 1)
    ]

    assert not texts_that_collide(figure_embedding_map(results, images))


def test_same_numbers_give_the_same_bytes(results: StreamResults,
                                          tmp_path: Path) -> None:
    first, second = (
        draw_embedding_map(results, IMAGES, tmp_path / name).read_bytes()
        for name in ('a.png', 'b.png'))

    assert first == second
