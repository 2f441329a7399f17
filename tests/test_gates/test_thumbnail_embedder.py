# SPDX-License-Identifier: Apache-2.0
"""Small copies of images whose pixels can be computed by hand."""
from __future__ import annotations

import pytest
import torch

from mmseg.registry import TASK_UTILS
from mmseg_mile.gates.embedders import ThumbnailEmbedder


def test_pixels_are_means_of_areas_channel_by_channel():
    image = torch.arange(16.).view(1, 1, 4, 4)
    images = torch.cat([image, image + 100], 1)
    # of rows 0 1 / 4 5, 2 3 / 6 7, ...
    means = [2.5, 4.5, 10.5, 12.5]
    got = ThumbnailEmbedder((2, 2))(None, images)
    assert got.tolist() == [means + [m + 100 for m in means]]


@pytest.mark.parametrize('height, width', [(96, 128), (48, 64), (37, 90),
                                           (20, 20)])
def test_images_of_any_size_give_as_many_values(height, width):
    embedder = TASK_UTILS.build(dict(type='ThumbnailEmbedder'))
    got = embedder(None, torch.rand(2, 3, height, width))
    assert got.shape == (2, 3 * 48 * 64)


def test_values_are_float32_whatever_the_images_are():
    got = ThumbnailEmbedder((2, 2))(None, torch.ones(1, 3, 4, 4).half())
    assert got.dtype is torch.float32


@pytest.mark.parametrize('size', [(48, ), (0, 64), (1, 2, 3)])
def test_wrong_size_is_refused(size):
    with pytest.raises(ValueError, match='embedder.size must be height and'):
        ThumbnailEmbedder(size)
