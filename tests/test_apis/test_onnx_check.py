# SPDX-License-Identifier: Apache-2.0
"""Which images an ONNX graph is right for."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.apis.export_check import SIZE, Output, stock_output
from mmseg_mile.apis.onnx_export import Sizes, supported_sizes

IMAGES = torch.arange(70.0 * 100).view(1, 1, 70, 100)


@pytest.fixture
def model(pristine, monkeypatch):
    model = pristine('cnn').model
    monkeypatch.setattr(model, 'keep_logits', True)
    with model.forced('day'):
        yield model


@pytest.fixture
def graph(model):
    """``graph(condition)``: right for the images that meet it alone."""

    def make(condition):

        def run(images):
            mine = stock_output(model, images)
            share = 1 if condition(images) else 0.99
            return Output(share * mine.logits, mine.labels)

        return run

    return make


def test_graph_that_is_right_everywhere_takes_any_size(model, graph):
    sizes = supported_sizes(graph(lambda _: True), model, None, 1e-4)
    assert sizes == Sizes()
    assert str(sizes) == 'any size'
    assert sizes.cut(IMAGES) is not None
    assert sizes.cut(IMAGES).shape == IMAGES.shape


def test_graph_may_need_multiples_of_the_stride(model, graph):
    even = graph(lambda x: x.shape[2] % 32 == x.shape[3] % 32 == 0)
    sizes = supported_sizes(even, model, None, 1e-4)
    assert sizes == Sizes(multiple=32)
    assert str(sizes) == 'height and width multiples of 32'
    assert torch.equal(sizes.cut(IMAGES), IMAGES[:, :, :64, :96])


def test_graph_of_one_size_takes_that_alone(model, graph):
    only = graph(lambda x: x.shape[2:] == (70, 90))
    sizes = supported_sizes(only, model, (70, 90), 1e-4)
    assert sizes == Sizes((70, 90))
    assert str(sizes) == '70 x 90 pixels'
    assert torch.equal(sizes.cut(IMAGES), IMAGES[:, :, :, :90])


def test_graph_that_is_right_at_one_size_is_refused(model, graph):
    only = graph(lambda x: x.shape[2:] == SIZE)
    with pytest.raises(ValueError, match='right at one size .* --size H W'):
        supported_sizes(only, model, None, 1e-4)


def test_graph_that_fails_is_no_better(model, graph):

    def run(images):
        if images.shape[2:] != SIZE:
            raise RuntimeError('Reshape')
        return stock_output(model, images)

    with pytest.raises(ValueError, match='right at one size'):
        supported_sizes(run, model, None, 1e-4)


@pytest.mark.parametrize('size', [None, (70, 90)])
def test_graph_of_one_number_of_images_is_refused(model, graph, size):
    pairs = graph(lambda x: len(x) == 2)
    with pytest.raises(ValueError, match='wrong for a single image'):
        supported_sizes(pairs, model, size, 1e-4)


@pytest.mark.parametrize('sizes', [Sizes((70, 101)), Sizes(multiple=80)])
def test_image_that_is_too_small_is_refused(sizes):
    with pytest.raises(ValueError, match='70 x 100 pixels .* too small'):
        sizes.cut(IMAGES)
