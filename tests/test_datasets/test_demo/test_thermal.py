# SPDX-License-Identifier: Apache-2.0
import cv2
import numpy as np
import pytest

from mmseg_mile.datasets.demo.heatnet_writer import frame_size
from mmseg_mile.datasets.demo.labels import heatnet_ids
from mmseg_mile.datasets.demo.raster import paint_buffers
from mmseg_mile.datasets.demo.snapshot import draw_scene
from mmseg_mile.datasets.demo.street_styles import FREIBURG
from mmseg_mile.datasets.demo.thermal import render_thermal, valid_columns
from mmseg_mile.datasets.label_tables import HEATNET_CLASSES

SKY, PERSON, FENCE = map(HEATNET_CLASSES.index, ('sky', 'person', 'fence'))


@pytest.fixture(scope='module', params=['day', 'night'])
def frames(request):
    night, frames = request.param == 'night', []
    for i in range(4):
        sketch, rng = draw_scene(4, f'thermal/{i}', frame_size((64, 128)),
                                 FREIBURG)
        counts = render_thermal(paint_buffers(sketch), night, rng)
        labels = heatnet_ids(sketch).copy()
        labels[counts == 0] = 255
        frames.append((counts, labels))
    return frames


def of_class(frames, label):
    return np.concatenate(
        [counts[labels == label] for counts, labels in frames]).astype(float)


def test_valid_columns_are_those_of_the_real_frames():
    assert valid_columns(1920) == (300, 1710)
    assert valid_columns(378) == (59, 337)


def test_counts_are_16_bit_and_in_the_sensors_range(frames):
    for counts, _ in frames:
        assert counts.dtype == np.uint16
        first, last = valid_columns(counts.shape[1])
        valid = counts[:, first:last]
        assert valid.min() >= 20800 and valid.max() <= 27000
        assert np.mean((valid >= 21800) & (valid <= 25000)) > .9


def test_columns_outside_are_empty(frames):
    for counts, _ in frames:
        first, last = valid_columns(counts.shape[1])
        assert not counts[:, :first].any()
        assert not counts[:, last:].any()


def test_people_are_warmer_than_the_sky(frames):
    assert of_class(frames, PERSON).size > 50
    assert np.median(of_class(frames, PERSON)) > (
        np.median(of_class(frames, SKY)) + 500)


def test_infrared_is_aligned_with_the_labels(frames):
    # The skyline is the strongest edge: a shift would mix sky and the rest.
    for counts, labels in frames:
        sky = cv2.erode((labels == SKY).astype(np.uint8), np.ones((3, 3)))
        rest = cv2.erode((labels < SKY).astype(np.uint8), np.ones((3, 3)))
        if sky.sum() < 30:
            continue
        warmest_sky = np.percentile(counts[sky > 0], 95)
        assert np.mean(counts[rest > 0] > warmest_sky) > .9
