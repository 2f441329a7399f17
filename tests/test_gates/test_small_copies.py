# SPDX-License-Identifier: Apache-2.0
"""Small copies of images."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.gates.embedders import small_copy


@pytest.mark.parametrize('size, scale, wanted', [
    ((128, 256), 0.5, (64, 128)),
    ((128, 256), 0.125, (32, 32)),
    ((30, 256), 0.25, (30, 64)),
    ((65, 200), 0.5, (32, 100)),
])
def test_sides_shrink_to_no_less_than_32_pixels(size, scale, wanted):
    assert small_copy(torch.zeros(1, 3, *size), scale).shape[2:] == wanted


def test_pixels_are_averaged():
    image = torch.tensor([[0., 4], [2, 6]]).repeat(32, 32)[None, None]
    assert small_copy(image, 0.5).unique().tolist() == [3]


def test_image_of_the_size_wanted_is_not_copied():
    image = torch.rand(1, 3, 64, 64)
    assert small_copy(image, 1.0) is image
