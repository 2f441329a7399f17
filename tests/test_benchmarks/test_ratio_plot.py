# SPDX-License-Identifier: Apache-2.0
"""Ratios as bars."""
from __future__ import annotations

import cv2

from mmseg_mile.benchmarks.ratio_plot import Bar, draw_ratios


def draw(path, *bars):
    draw_ratios(bars, 'time', 'Title', path)
    return cv2.imread(str(path))


def test_more_bars_make_a_taller_picture(tmp_path):
    one = draw(tmp_path / '1.png', Bar('net', 'ours', 0.5))
    two = draw(tmp_path / '2.png', Bar('net', 'stock', 1.0),
               Bar('net', 'ours', 0.5))
    assert two.shape[0] > one.shape[0]


def test_goal_is_drawn_in_red(tmp_path):

    def red(image):
        return int(
            ((image[..., 2] > 230) & (image[..., :2].max(-1) < 30)).sum())

    assert red(draw(tmp_path / 'a.png', Bar('net', 'ours', 0.5))) == 0
    assert red(draw(tmp_path / 'b.png', Bar('net', 'ours', 0.5, goal=0.7))) > 0


def test_bar_without_a_figure_is_drawn(tmp_path):
    assert draw(tmp_path / 'a.png', Bar('net', 'PEFT', None)) is not None
