# SPDX-License-Identifier: Apache-2.0
"""Plots of one run: numbers, colours, and texts that never overlap."""
from __future__ import annotations

import cv2
import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb, to_rgba

from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.evaluation.routing_log import RoutedImage
# yapf: disable
from mmseg_mile.visualization.plots import (DPI, MAX_STYLED, WRONG, add_title,
                                            figure_bytes, has_embedding_map,
                                            new_figure, plot_class_iou,
                                            plot_embedding_map,
                                            plot_gate_confusion,
                                            plot_score_matrix,
                                            plot_stream_curves,
                                            project_distances, save_figure,
                                            task_styles)

# yapf: enable

PLOTS = (plot_score_matrix, plot_stream_curves, plot_class_iou,
         plot_gate_confusion)


def written(axes):
    """Texts in the cells of a heat map, by (column, row)."""
    return {
        tuple(round(float(x) - 0.5) for x in t.get_position()): t.get_text()
        for t in axes.texts if t.get_text()
    }


def names(axes, which):
    return [t.get_text() for t in getattr(axes, f'get_{which}ticklabels')()]


@pytest.mark.parametrize('plot', PLOTS)
@pytest.mark.parametrize('size', [1, 3, 5, 10, 30])
def test_texts_of_any_stream_find_room(make_results, texts_that_collide, plot,
                                       size):
    assert not texts_that_collide(plot(make_results(size)))


def test_same_results_give_the_same_bytes(make_results):
    first, second, other = (
        figure_bytes(plot_stream_curves(make_results(size)))
        for size in (3, 3, 2))
    assert first == second != other


def test_picture_has_the_size_of_its_figure_and_names_no_software(tmp_path):
    # a user's settings do not crop the page
    with matplotlib.rc_context({'savefig.bbox': 'tight', 'savefig.dpi': 30}):
        path = save_figure(new_figure(3, 2), tmp_path / 'new' / 'a.png')
    assert cv2.imread(str(path)).shape == (2 * DPI, 3 * DPI, 3)
    assert b'Software' not in path.read_bytes()


def test_long_title_is_broken_into_lines(texts_that_collide):
    figure = new_figure(4, 3)
    figure.subplots()
    add_title(figure, 'a method with a long name on ' * 4)
    assert not texts_that_collide(figure)


# -- task styles ----------------------------------------------------------


def test_no_two_tasks_look_alike():
    styles = task_styles(MAX_STYLED)
    assert len(set(styles)) == MAX_STYLED
    for (colour, marker), (other, shape) in zip(styles, styles[1:]):
        assert colour != other and marker != shape
    assert task_styles(12)[:3] == task_styles(3)


def test_colours_of_a_long_stream_follow_its_order():
    styles = task_styles(300)
    assert len({colour for colour, _ in styles}) > 200
    brightness = [sum(to_rgb(styles[i][0])) for i in (0, 100, 200, 299)]
    assert brightness == sorted(brightness)


# -- matrices -------------------------------------------------------------


def test_both_matrices_hold_their_numbers_on_one_scale(make_results):
    routed, oracle, _ = plot_score_matrix(make_results()).axes
    assert written(routed) == {
        (0, 0): '50.0', (1, 0): '49.9', (0, 1): '49.0', (1, 1): '48.9'
    }  # yapf: disable
    # what was not evaluated stays blank
    assert written(oracle) == {(0, 0): '52.0', (0, 1): '51.0', (1, 1): '50.9'}
    clims = [axes.collections[0].get_clim() for axes in (routed, oracle)]
    assert clims[0] == clims[1]
    assert len(routed.patches) == 2  # frames of the tasks just learned


def test_numbers_stand_out_from_their_cells(make_results):
    results = make_results()
    results.miou['routed'][:] = [[5, np.nan], [np.nan, 95]]
    axes = plot_score_matrix(results).axes[0]
    colours = {t.get_text(): t.get_color() for t in axes.texts}
    assert colours == {'5.0': 'white', '95.0': 'black'}


def test_long_streams_leave_out_the_numbers(make_results):
    assert not plot_score_matrix(make_results(30)).axes[0].texts


def test_oracle_that_was_not_measured_is_left_out(make_results):
    for plot in (plot_score_matrix, plot_class_iou):
        figure = plot(make_results(gate=False))
        assert len(figure.axes) == 2  # the panel and its colour bar


@pytest.mark.parametrize('scores, limits', [
    ([[60, 60.2], [60.1, 60]], (55.1, 65.1)),
    ([[100, 100], [100, 100]], (90, 100)),
    ([[1, 1], [1, 1]], (0, 10)),
    ([[20, 60], [30, 40]], (20, 60)),
])
def test_noise_is_not_blown_up(scores, limits):
    results = StreamResults.new('s', 'm', 0, ['a', 'b'])
    results.miou['routed'][:] = scores
    axes = plot_score_matrix(results).axes[0]
    assert axes.collections[0].get_clim() == pytest.approx(limits)
    low, high = plot_stream_curves(results).axes[0].get_ylim()
    assert high - low >= 9.9


def test_run_without_a_row_has_a_matrix(texts_that_collide):
    results = StreamResults.new('s', 'm', 0, ['a', 'b'])
    assert not texts_that_collide(plot_score_matrix(results))


def test_classes_stand_beside_what_routing_cost_them():
    results = StreamResults.new('city', 'MILE', 0, ['day', 'farm', 'fog'])
    results.set_class_iou('routed', 'day', dict(road=80, sky=60))
    results.set_class_iou('routed', 'farm', dict(sky=np.nan, weed=30))
    results.set_class_iou('oracle', 'day', dict(road=82.5, sky=60))
    results.set_class_iou('oracle', 'farm', dict(sky=np.nan, weed=29))
    routed, lost = (
        axes for axes in plot_class_iou(results).axes if axes.get_title())
    assert names(routed, 'x') == ['day', 'farm']
    assert names(routed, 'y') == ['road', 'sky', 'weed']
    assert written(routed) == {(0, 0): '80', (0, 1): '60', (1, 2): '30'}
    assert lost.get_title() == 'Lost to routing'
    assert written(lost) == {(0, 0): '2.5', (1, 2): '-1.0'}
    assert lost.collections[0].get_clim() == (-5, 5)


def test_confusion_counts_images_and_colours_shares(make_results):
    axes, _ = plot_gate_confusion(make_results()).axes
    # zeros would hide the few wrong choices
    assert written(axes) == {(0, 0): '4', (0, 1): '1', (1, 1): '3'}
    assert axes.collections[0].get_array()[1].tolist() == [25, 75]
    assert '87.50 % right' in axes.get_title()


# -- curves ---------------------------------------------------------------


def curves(oracle=np.nan):
    results = StreamResults.new('city', 'MILE', 0, ['day', 'dusk', 'fog'])
    results.miou['routed'][:2] = [[60, 20, 10], [50, 70, 12]]
    results.miou['oracle'][:2] = [[60, np.nan, np.nan], [oracle, 70, np.nan]]
    figure = plot_stream_curves(results)
    return figure, figure.axes[0].lines


def test_lines_begin_when_their_task_is_learned_with_the_mean_of_the_seen():
    _, lines = curves()
    assert {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in lines
    } == {
        'day': ([0, 1], [60, 50]),
        'dusk': ([1], [70]),
        'mean of seen': ([0, 1], [60, 60])
    }


@pytest.mark.parametrize('oracle, count', [(np.nan, 0), (50.01, 0), (58, 2)])
def test_oracle_is_dashed_where_it_differs(oracle, count):
    figure, lines = curves(oracle)
    # the task itself, and the mean
    assert sum(line.get_linestyle() == '--' for line in lines) == count
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    # in the order of the scores at the end
    assert labels == ['dusk', 'mean of seen', 'day'] + ['oracle'] * bool(count)


def test_long_stream_names_the_mean_only(make_results):
    figure = plot_stream_curves(make_results(30))
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert labels == ['mean of seen', 'oracle']
    assert figure.get_figwidth() < 12


# -- map of the gate ------------------------------------------------------

TASKS = ['day', 'dusk', 'fog']
CORNERS = np.array([[0., 0.], [6., 0.], [0., 8.]])


def distances(one, other):
    return np.linalg.norm(np.asarray(one)[:, None] - other, axis=-1)


def make_image(task, place, **changes):
    lengths = distances([place], CORNERS)[0].tolist()
    values = dict(expert=task, distances=dict(zip(TASKS, lengths)))
    return RoutedImage('fog', task, 'Set', 'a.png', **{**values, **changes})


@pytest.fixture
def mapped():
    results = StreamResults.new('city', 'MILE', 0, TASKS)
    results.set_prototype_distances(distances(CORNERS, CORNERS))
    return results


IMAGES = [make_image('day', (1, 1)), make_image('dusk', (5, 1))]


def test_image_between_prototypes_lies_between_their_marks():
    # 5 across the plane, which is the same for all prototypes
    flat = np.pad(CORNERS, ((0, 0), (0, 1)))
    images = [[3, 0, 5], [2, 8 / 3, 5]]
    corners, places, shown = project_distances(
        distances(flat, flat), distances(images, flat))
    assert places[0] == pytest.approx(corners[:2].mean(0))
    assert places[1] == pytest.approx(corners.mean(0))
    assert shown == pytest.approx(1)
    assert (corners[0] <= 0).all()


def test_two_prototypes_make_a_plane_of_both_distances():
    corners, places, shown = project_distances(
        np.array([[0., 6.], [6., 0.]]), np.array([[5., 5.], [3., 3.]]))
    # squared distances differ by nothing in one direction
    gap = places[0] - places[1]
    assert np.hypot(*gap) == pytest.approx(16 * 2**0.5)
    assert gap @ (corners[0] - corners[1]) == pytest.approx(0)
    assert shown == pytest.approx(1)


def test_more_dimensions_tell_how_much_is_shown():
    corners = np.array([[3, 2, 1], [3, -2, -1], [-3, 2, -1], [-3, -2, 1.]])
    between = distances(corners, corners)
    _, _, shown = project_distances(between, between)
    # differences along the axes are as 9, 4 and 1; squares of squares count
    assert shown == pytest.approx((81 + 16) / (81 + 16 + 1))


def test_colour_is_the_true_task_and_a_cross_the_wrong_expert(mapped):
    wrong = make_image('dusk', (5, 1), expert='day')
    axes = plot_embedding_map(mapped, [*IMAGES[:1], wrong]).axes[0]
    drawn = {
        to_hex(c.get_facecolors()[0]): len(c.get_offsets())
        for c in axes.collections if len(c.get_facecolors())
    }
    assert drawn[task_styles(3)[1][0]] and drawn[to_hex(WRONG)] == 1
    right = plot_embedding_map(mapped, IMAGES).axes[0]
    assert not any(
        len(c.get_edgecolors())
        and tuple(c.get_edgecolors()[0]) == to_rgba(WRONG)
        for c in right.collections)


def test_images_out_of_distribution_are_hollow(mapped):
    axes = plot_embedding_map(mapped, [make_image('day', (1, 1), ood=True)])
    hollow = [
        c for c in axes.axes[0].collections
        if len(c.get_offsets()) and not len(c.get_facecolors())
    ]
    assert [to_hex(c.get_edgecolors()[0])
            for c in hollow] == [task_styles(3)[0][0]]


def test_task_without_an_expert_is_named_and_not_wrong():
    results = StreamResults.new('city', 'MILE', 0, [*TASKS, 'rain'])
    results.set_prototype_distances(distances(CORNERS, CORNERS))
    images = [*IMAGES, make_image('rain', (2, 2), expert='day')]
    legend = plot_embedding_map(results, images).legends[0]
    assert [t.get_text() for t in legend.get_texts()
            ] == ['day', 'dusk', 'fog', 'rain (not learned)']


def test_images_without_all_distances_are_left_out(mapped):
    early = make_image('day', (1, 1), distances=dict(day=1.0))
    axes = plot_embedding_map(mapped, [*IMAGES, early]).axes[0]
    assert sum(len(c.get_offsets()) for c in axes.collections) == 2 + 3


@pytest.mark.parametrize('known, images', [
    (3, []),
    (3, [make_image('day', (1, 1), distances={})]),
    (1, IMAGES),
    (0, IMAGES),
])
def test_what_cannot_be_mapped_is_told(mapped, known, images):
    assert has_embedding_map(mapped, IMAGES)
    results = StreamResults.new('city', 'MILE', 0, TASKS)
    if known:
        results.set_prototype_distances(
            distances(CORNERS[:known], CORNERS[:known]))
    assert not has_embedding_map(results, images)


@pytest.mark.parametrize('size', [2, 5, 12, 30])
def test_texts_of_any_map_find_room(size, texts_that_collide):
    rng = np.random.default_rng(0)
    tasks = [f'a rather long name {i}' for i in range(size)]
    places = rng.normal(0, 9, (size, 8))
    results = StreamResults.new('city', 'MILE', 0, tasks)
    results.set_prototype_distances(distances(places, places))
    images = [
        RoutedImage('x', task, 'Set', 'a.png', tasks[0], {},
                    dict(zip(tasks, row.tolist())), True)
        for task, row in zip(tasks,
                             distances(places, places) + 1)
    ]
    assert not texts_that_collide(plot_embedding_map(results, images))
