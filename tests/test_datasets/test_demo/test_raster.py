# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from mmseg_mile.datasets.demo.raster import paint_buffers
from mmseg_mile.datasets.demo.snapshot import draw_scene
from mmseg_mile.datasets.demo.street_styles import GERMAN


@pytest.fixture(scope='module')
def buffers():
    sketch, _ = draw_scene(1, 'raster', (64, 128), GERMAN)
    return paint_buffers(sketch)


def test_street_comes_nearer_towards_the_bottom(buffers):
    ground = buffers.on('ground')
    column = ground.sum(axis=0).argmax()
    depth = buffers.z[ground[:, column], column]
    assert len(depth) > 10
    assert (np.diff(depth) <= 0).all()


def test_street_lies_at_height_zero(buffers):
    near = buffers.on('ground') & (buffers.z < 50)
    np.testing.assert_allclose(buffers.y[near], 0., atol=1e-3)


def test_windows_are_on_facades_only(buffers):
    windows, chance = buffers.windows
    assert windows.any()
    assert (windows <= buffers.of('facade')).all()
    assert 0 <= chance.min() and chance.max() < 1
