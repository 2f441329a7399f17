# SPDX-License-Identifier: Apache-2.0
"""Evaluated images: made of samples, kept on disk, drawn."""
from __future__ import annotations

import logging
import math
import os

import numpy as np
import pytest
from matplotlib.colors import to_hex

from mmseg_mile.visualization.gallery import (MAX_WIDTH, LabelMap, image_miou,
                                              make_panel, plot_gallery,
                                              read_panels, write_panel)
from mmseg_mile.visualization.overlay import OOD_COLOUR
from mmseg_mile.visualization.plots import RIGHT, WRONG, figure_bytes

LOGGER = logging.getLogger('pictures')
WEED = dict(classes=('weed', ), palette=((1, 2, 3), ))


@pytest.fixture
def panel_of(make_task):
    """A panel of the first image of a task."""

    def make(sample, oracle=None, **options):
        return make_panel(make_task(), 0, sample, LOGGER, oracle, **options)

    return make


# -- from samples ---------------------------------------------------------


def test_prediction_has_the_label_space_of_its_expert(panel_of, make_sample):
    panel = panel_of(make_sample(expert='farm', ood=True, **WEED))
    assert panel.maps['prediction'].classes == ('weed', )
    assert (panel.expert, panel.ood, panel.miou) == ('farm', True, 0)


def test_plain_method_has_the_label_space_of_the_task(panel_of, make_sample):
    panel = panel_of(make_sample())
    assert panel.maps['prediction'].classes == panel.maps['truth'].classes
    assert panel.expert is None and panel.miou == 100
    assert math.isnan(panel.routing_cost)


def test_image_without_a_prediction_scores_nothing(panel_of, make_sample):
    silent = np.full((30, 40), 255)
    panel = panel_of(make_sample(prediction=silent, ood=True))
    assert panel.miou == 0 and panel.expert is None
    plot_gallery([panel], 'pictures')


def test_own_expert_stands_beside_a_wrong_one(panel_of, make_sample):
    truth = np.zeros((30, 40), int)
    routed = make_sample(truth, np.ones((30, 40), int), expert='farm')
    panel = panel_of(routed, make_sample(truth, truth, expert='day'))
    assert (panel.miou, panel.oracle_miou, panel.routing_cost) == (0, 100, 100)
    assert (panel.maps['prediction'].labels == 1).all()
    assert (panel.maps['oracle'].labels == 0).all()


def test_right_routing_needs_no_second_map(panel_of, make_sample):
    sample = make_sample(expert='day')
    panel = panel_of(sample, sample)
    assert 'oracle' not in panel.maps and panel.routing_cost == 0


def test_image_is_shown_as_it_was_evaluated(panel_of, make_sample):
    sample = make_sample(
        np.zeros((30, 20), int), cropped_columns=dict(img=(10, 30)))
    assert panel_of(sample).image[0, :, 0].tolist() == list(range(20, 60, 2))
    # the labels of a smaller copy
    small = panel_of(make_sample(np.zeros((15, 20), int)))
    assert small.image.shape == (15, 20, 3)


def test_large_pictures_are_kept_small(panel_of, make_sample):
    panel = panel_of(make_sample(np.zeros((600, 2 * MAX_WIDTH), int)))
    assert panel.image.shape == (300, MAX_WIDTH, 3)
    assert {each.labels.shape
            for each in panel.maps.values()} == {(300, MAX_WIDTH)}


def test_picture_of_any_height_can_be_written(panel_of, make_sample, tmp_path):
    panel = panel_of(make_sample(np.zeros((70000, 20), int)))
    assert panel.maps['truth'].labels.shape == panel.image.shape[:2]
    assert write_panel(tmp_path, panel).is_file()


def test_unreadable_image_is_grey_and_told(panel_of, make_sample, caplog):
    panel = panel_of(make_sample(img_path='gone.npy'))
    assert (panel.image == 128).all() and 'gone.npy' in caplog.text


def test_file_is_named_below_the_data_root(panel_of, make_sample, tmp_path):
    roots = (tmp_path, tmp_path.parent, tmp_path / 'other')
    assert [
        panel_of(make_sample(), data_root=str(root)).file for root in roots
    ] == [
        'image.png', f'{tmp_path.name}/image.png',
        (tmp_path / 'image.png').as_posix()
    ]


def test_image_without_a_label_has_no_score(make_task, make_sample):
    sample = make_sample(np.full((30, 40), 255), np.zeros((30, 40), int))
    assert math.isnan(image_miou(make_task(), sample))


# -- on disk --------------------------------------------------------------


def test_panels_are_found_again_in_the_order_of_the_tasks(
        make_panel, tmp_path):
    panels = [make_panel('dusk', 'day', 10), make_panel('dusk', None, 9),
              make_panel(miou=math.nan, maps=dict(oracle=LabelMap(
                  np.zeros((30, 40), int), **WEED)))]  # yapf: disable
    for panel in panels:
        write_panel(tmp_path, panel)
    found = read_panels(tmp_path, ['day', 'dusk', 'fog'])
    assert [(p.task, p.number, p.expert, p.ood, p.file)
            for p in found] == [('day', 0, 'day', False, 'day/<0>.png'),
                                ('dusk', 9, None, True, 'dusk/<9>.png'),
                                ('dusk', 10, 'day', True, 'dusk/<10>.png')]
    assert math.isnan(found[0].miou) and found[2].miou == 40
    assert (found[0].image == 128).all()
    for name, each in panels[2].maps.items():
        again = found[0].maps[name]
        np.testing.assert_array_equal(again.labels, each.labels)
        assert list(again.classes) == list(each.classes)


def test_killed_write_leaves_no_panel(make_panel, tmp_path, monkeypatch):

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'replace', killed)
    with pytest.raises(KeyboardInterrupt):
        write_panel(tmp_path, make_panel())
    assert not read_panels(tmp_path, ['day'])


@pytest.mark.parametrize('size', [0, 60, 600])
def test_broken_file_is_named_or_costs_its_panel(make_panel, tmp_path, size,
                                                 caplog):
    path = write_panel(tmp_path, make_panel())
    write_panel(tmp_path, make_panel('dusk'))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match='day/000000.npz is no whole picture'):
        read_panels(tmp_path, ['day', 'dusk'])
    assert len(read_panels(tmp_path, ['day', 'dusk'], LOGGER)) == 1
    assert 'day/000000.npz' in caplog.text


# -- drawn ----------------------------------------------------------------


def captions(figure):
    return {
        axes.get_xlabel(): axes.xaxis.label.get_color()
        for axes in figure.axes if axes.get_xlabel()
    }


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def picture(axes):
    return axes.images[0].get_array()


def test_rows_show_image_truth_and_prediction(make_panel):
    figure = plot_gallery([make_panel(), make_panel('dusk')], 'First')
    assert [axes.get_title() for axes in figure.axes[:3]
            ] == ['Image', 'Ground truth', 'Prediction']
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == ['day', 'dusk']
    image, truth, prediction = map(picture, figure.axes[:3])
    assert image[-1, 0].tolist() == [128] * 3
    assert truth[[1, -1], 0].tolist() == [[0, 90, 0], [90, 0, 0]]
    assert prediction[1, 0].tolist() == [90, 0, 0]
    assert legend(figure) == ['road', '<b>sky</b>', 'no label']


def test_right_expert_is_green_and_wrong_one_red(make_panel):
    panels = [make_panel(), make_panel(expert='night', number=3),
              make_panel(expert=None, miou=math.nan)]  # yapf: disable
    assert captions(plot_gallery(panels, 'First')) == {
        '✓ day, mIoU 50.0': RIGHT,
        '✗ night, mIoU 47.0': WRONG,
        'out-of-distribution': OOD_COLOUR
    }


def test_costly_row_compares_both_experts(make_panel):
    weeds = LabelMap(np.zeros((30, 40), int), **WEED)
    panel = make_panel(expert='night', miou=40., maps=dict(oracle=weeds))
    figure = plot_gallery([panel], 'Cost', with_oracle=True)
    assert list(captions(figure)) == [
        '12.0 points lost', '✗ night, mIoU 40.0', '✓ day, mIoU 52.0'
    ]
    assert 'weed' in legend(figure)
    assert 'weed' not in legend(plot_gallery([panel], 'First'))


def test_colours_go_by_the_name_of_the_class(make_panel):
    labels = np.tile(np.array([0, 1], np.int16), (30, 20))
    found = LabelMap(labels, ('weed', 'road'), ((90, 0, 0), (7, 7, 7)))
    panel = make_panel(maps=dict(prediction=found))
    axes = plot_gallery([panel], 'First').axes
    weed, road = picture(axes[2])[-1, :2].tolist()
    assert road == picture(axes[1])[-1, 0].tolist() == [90, 0, 0]
    # another class of the same colour looks different
    assert weed not in ([90, 0, 0], [7, 7, 7])


@pytest.mark.parametrize('count, with_oracle', [(1, False), (9, True)])
def test_texts_of_any_gallery_find_room(make_panel, texts_that_collide, count,
                                        with_oracle):
    name = 'a domain with quite a long name indeed'
    classes = [f'class number {i}' for i in range(60)]
    palette = [(4 * i, i, 255 - i) for i in range(60)]
    truth = (np.arange(1200) % 60).reshape(30, 40)
    panel = make_panel(name, name + '!', 3, maps=dict(
        truth=LabelMap(truth, classes, palette)))  # yapf: disable
    figure = plot_gallery([panel] * count, 'First', with_oracle)
    assert not texts_that_collide(figure)
    assert to_hex(figure.get_facecolor()) == '#ffffff'


def test_same_panels_give_the_same_bytes(make_panel):
    assert figure_bytes(plot_gallery([make_panel()], 'a')) == figure_bytes(
        plot_gallery([make_panel()], 'a'))
