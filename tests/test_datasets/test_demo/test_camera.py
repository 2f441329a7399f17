# SPDX-License-Identifier: Apache-2.0
import numpy as np

from mmseg_mile.datasets.demo.camera import Camera

CAMERA = Camera(100, 200, focal=100., center_x=90., horizon=40., mount=1.5)


def test_points_straight_ahead_at_camera_height_meet_the_vanishing_point():
    pixels = CAMERA.project(0., 1.5, np.array([3., 300.]))
    np.testing.assert_allclose(pixels, [[90., 40.], [90., 40.]])


def test_street_point_projects_by_similar_triangles():
    # 2 m right and 1.5 m below the camera at 10 m: 20 and 15 pixels.
    np.testing.assert_allclose(
        CAMERA.project(2., 0., np.array([10.])), [[110., 55.]])
