# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import cv2
import matplotlib

from mmseg_mile.visualization.figure_file import DPI, new_figure, save_figure


def test_picture_has_the_size_of_the_figure(tmp_path: Path) -> None:
    path = save_figure(new_figure(3, 2), tmp_path / 'new' / 'a.png')

    assert cv2.imread(str(path)).shape == (2 * DPI, 3 * DPI, 3)


def test_settings_of_the_user_do_not_crop_the_page(tmp_path: Path) -> None:
    with matplotlib.rc_context({'savefig.bbox': 'tight', 'savefig.dpi': 30}):
        path = save_figure(new_figure(3, 2), tmp_path / 'a.png')

    assert cv2.imread(str(path)).shape == (2 * DPI, 3 * DPI, 3)


def test_file_does_not_name_its_software(tmp_path: Path) -> None:
    path = save_figure(new_figure(1, 1), tmp_path / 'a.png')

    assert b'Software' not in path.read_bytes()
