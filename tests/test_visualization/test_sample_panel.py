# SPDX-License-Identifier: Apache-2.0
import logging
import math
from pathlib import Path
from typing import Callable

import numpy as np
import pytest

from mmseg_mile.structures import Task
from mmseg_mile.visualization.sample_panel import (MAX_WIDTH, image_miou,
                                                   make_panel)

LOGGER = logging.getLogger('pictures')
CLASSES, PALETTE = ('road', 'sky'), ((90, 0, 0), (0, 90, 0))


def make_task(name: str = 'day') -> Task:
    return Task(name, CLASSES, PALETTE, {}, {})


def test_panel_takes_the_label_space_of_the_expert(
        make_sample: Callable) -> None:
    prediction = np.zeros((30, 40), int)
    panel = make_panel(
        make_task(),
        make_sample(
            prediction=prediction,
            expert='farm',
            ood=True,
            classes=('weed', ),
            palette=((1, 2, 3), )), LOGGER)

    assert panel.prediction_classes == ('weed', )
    assert panel.expert == 'farm'
    assert panel.ood
    assert panel.miou == 0


def test_panel_of_a_plain_method_has_the_label_space_of_the_task(
        make_sample: Callable) -> None:
    panel = make_panel(make_task(), make_sample(), LOGGER)

    assert panel.prediction_classes == CLASSES
    assert panel.expert is None
    assert panel.miou == 100


@pytest.mark.parametrize(
    'metainfo',
    [dict(crop_columns=(10, 30)),
     dict(cropped_columns=dict(img=(10, 30)))])
def test_cropped_columns_are_cropped_from_the_image(make_sample: Callable,
                                                    metainfo: dict) -> None:
    panel = make_panel(make_task(),
                       make_sample(truth=np.zeros((30, 20), int), **metainfo),
                       LOGGER)

    assert panel.image[0, :, 0].tolist() == list(range(20, 60, 2))


def test_image_of_another_size_is_brought_to_the_labels(
        make_sample: Callable) -> None:
    panel = make_panel(make_task(), make_sample(truth=np.zeros((15, 20), int)),
                       LOGGER)

    assert panel.image.shape == (15, 20, 3)


def test_large_pictures_are_kept_small(make_sample: Callable) -> None:
    truth = np.zeros((600, 2 * MAX_WIDTH), int)
    panel = make_panel(make_task(), make_sample(truth=truth), LOGGER)

    assert panel.image.shape == (300, MAX_WIDTH, 3)
    assert panel.truth.shape == panel.prediction.shape == (300, MAX_WIDTH)


def test_unreadable_image_does_not_end_the_run(
        make_sample: Callable, caplog: pytest.LogCaptureFixture) -> None:
    panel = make_panel(make_task(), make_sample(img_path='gone.npy'), LOGGER)

    assert (panel.image == 128).all()
    assert 'gone.npy' in caplog.text


def test_own_expert_stands_beside(make_sample: Callable) -> None:
    truth = np.zeros((30, 40), int)
    routed = make_sample(truth, np.ones((30, 40), int), expert='farm')
    own = make_sample(truth, truth, classes=('road', ), palette=((9, 9, 9), ))
    panel = make_panel(make_task(), routed, LOGGER, oracle=own)

    assert (panel.miou, panel.oracle_miou) == (0, 100)
    assert (panel.prediction == 1).all()
    assert (panel.oracle == 0).all()
    assert panel.oracle_classes == ('road', )


def test_right_routing_needs_no_second_map(make_sample: Callable) -> None:
    sample = make_sample(expert='day')
    panel = make_panel(make_task(), sample, LOGGER, oracle=sample)

    assert panel.oracle is None
    assert panel.oracle_miou == panel.miou == 100


def test_file_is_named_below_the_data_root(make_sample: Callable,
                                           tmp_path: Path) -> None:
    sample = make_sample()
    names = [
        make_panel(make_task(), sample, LOGGER, data_root=str(root)).file
        for root in (tmp_path, tmp_path.parent, tmp_path / 'other')
    ]

    assert names == [
        'image.png', f'{tmp_path.name}/image.png',
        (tmp_path / 'image.png').as_posix()
    ]


def test_image_without_a_label_has_no_score(make_sample: Callable) -> None:
    nothing = make_sample(
        truth=np.full((30, 40), 255), prediction=np.zeros((30, 40), int))

    assert math.isnan(image_miou(make_task(), nothing))
