# SPDX-License-Identifier: Apache-2.0
import cv2
import numpy as np

from mmseg_mile.datasets.demo.camera import Camera
from mmseg_mile.datasets.demo.sketch import Paint, Sketch

CAMERA = Camera(60, 80, focal=80., center_x=40., horizon=25., mount=1.5)
PAINT = Paint('metal', (.5, .5, .5))


def filled(outline: np.ndarray) -> np.ndarray:
    mask = np.zeros((60, 80), np.uint8)
    cv2.fillPoly(mask, [np.rint(outline).astype(np.int32)], 1)
    return mask


def test_clipping_changes_no_visible_pixel():
    # A concave arrow that leaves the frame on two sides.
    outline = np.array([[-60., 10], [30, -50], [120, 30], [40, 20], [10, 90]])
    sketch = Sketch(CAMERA)
    sketch.screen('car', outline, 'hood', PAINT)
    clipped = sketch.parts[0].outline
    assert clipped.min() >= -3.01
    assert (clipped.max(axis=0) <= (82.01, 62.01)).all()
    # Clipped corners are rounded to pixels: the slanted edges may shift.
    assert np.mean(filled(clipped) != filled(outline)) < .01


def test_part_out_of_view_is_dropped():
    sketch = Sketch(CAMERA)
    sketch.upright('car', 5., [[90, 0], [95, 0], [95, 2]], PAINT)
    assert not sketch.parts


def test_strip_reaches_the_horizon_only_far_away():
    sketch = Sketch(CAMERA)
    sketch.strip('road', (-3, 3), (2, 1000), PAINT)
    assert 25 < sketch.parts[0].outline[:, 1].min() < 25.5
