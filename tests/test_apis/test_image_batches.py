# SPDX-License-Identifier: Apache-2.0
"""Images are read and predicted a few at a time, in order."""
from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmseg_mile.apis.images import (ImageContent, VideoFile, count_images,
                                    load_image, predict_by_size,
                                    predict_images)


def sources(*names):
    return [ImageContent(name, b'') for name in names]


class Reader:
    """Reads every image but those whose names begin with 'bad'."""

    def __init__(self):
        self.batches = []

    def load(self, source):
        if source.name.startswith('bad'):
            raise ValueError(f'{source.name} is broken')
        return source.name

    def forward(self, loaded):
        self.batches.append(loaded)
        return [name.upper() for name in loaded]

    def run(self, images, size, broken):
        for outcome in predict_images(images, size, self.load, self.forward,
                                      broken):
            yield outcome.source.name, outcome.sample


def test_batches_have_the_size_that_was_asked_for():
    reader = Reader()
    found = list(reader.run(sources('a', 'b', 'c'), 2, None))
    assert found == [('a', 'A'), ('b', 'B'), ('c', 'C')]
    assert reader.batches == [['a', 'b'], ['c']]


def test_nothing_is_read_before_it_is_needed():
    images = iter(sources('a', 'b', 'c'))
    assert next(Reader().run(images, 1, None)) == ('a', 'A')
    assert [s.name for s in images] == ['b', 'c']


def test_broken_ones_are_collected_and_the_rest_keep_their_names():
    broken = {}
    found = list(Reader().run(sources('a', 'bad', 'c', 'bad2'), 3, broken))
    assert found == [('a', 'A'), ('c', 'C')]
    assert broken == dict(bad='bad is broken', bad2='bad2 is broken')


def test_error_comes_after_the_images_before_it():
    found = Reader().run(sources('a', 'b', 'bad', 'd'), 4, None)
    assert [next(found), next(found)] == [('a', 'A'), ('b', 'B')]
    with pytest.raises(ValueError, match='bad is broken'):
        next(found)


def test_images_of_one_size_are_stacked_and_keep_their_order():
    shapes = []

    def test_step(batch):
        shapes.append([tuple(x.shape) for x in batch['inputs']])
        return [float(x.sum()) for x in batch['inputs']]

    sizes = [(1, 2), (3, 2), (1, 2)]
    inputs = [
        dict(inputs=torch.full((1, *s), 1.0 + i), data_samples=None)
        for i, s in enumerate(sizes)
    ]
    found = predict_by_size(SimpleNamespace(test_step=test_step), inputs)
    assert found == [2, 12, 6]
    assert shapes == [[(1, 1, 2)] * 2, [(1, 3, 2)]]


def test_image_that_a_pipeline_refuses_is_named():

    def pipeline(results):
        raise TypeError('no bytes')

    source = ImageContent.of_array('x', np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match='x cannot be read as an image: Type'):
        load_image(source, pipeline)


def test_count_is_unknown_if_a_video_does_not_tell():
    video = VideoFile.__new__(VideoFile)
    video.num_frames = 5
    assert count_images([*sources('a', 'b'), video]) == 7
    video.num_frames = 0
    assert count_images([*sources('a', 'b'), video]) is None
    assert count_images([]) == 0
