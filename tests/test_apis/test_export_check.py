# SPDX-License-Identifier: Apache-2.0
"""Outputs of exported models compared with those of experts."""
from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from mmseg_mile.apis.export_check import (Difference, Output, compare,
                                          drawn_images, loaded_image,
                                          mixed_output, stock_output)

MIXTURE = {'day': 0.5, 'night': 0.3, 'fog': 0.2}
STEPS = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(32, 16), keep_ratio=False),
    dict(type='PackSegInputs')
]


def output(*logits):
    """Of one image of one row, two classes."""
    maps = torch.tensor(logits)[None, :, None]
    return Output(maps, maps.argmax(1))


@pytest.fixture
def model(pristine, monkeypatch):
    model = pristine('cnn').model
    monkeypatch.setattr(model, 'keep_logits', True)
    return model


def test_difference_is_of_logits_and_labels():
    mine = output([8.0, 0.0, 0.0, 0.0], [0.0, 2.0, 2.0, 2.0])
    theirs = output([8.0, 2.5, 0.0, 0.0], [0.0, 2.0, 2.0, 2.0])
    found = Difference.of(mine, theirs, 'a row')
    assert found == Difference(2.5, 8.0, 0.25, 'a row')
    assert found.within(2.5 / 8) and not found.within(2.4 / 8)
    assert 'on a row the largest difference is 2.5, of logits up to 8' in str(
        found)
    assert '25.0000 % of the label pixels' in str(found)


def test_difference_above_the_tolerance_is_an_error():
    found = Difference(2.5, 8.0, 0.25, 'a row')
    found.check(0.4, 'fog.pth')
    with pytest.raises(ValueError, match='fog.pth does not predict .* 2.5'):
        found.check(0.3, 'fog.pth')


@pytest.mark.parametrize('theirs', [
    output([float('nan')] * 4, [0.0] * 4),
    output([0.0] * 3, [0.0] * 3),
])  # yapf: disable
def test_no_number_and_another_size_are_never_within(theirs):
    mine = output([1.0] * 4, [0.0] * 4)
    assert not Difference.of(mine, theirs, 'a row').within(1e6)


def test_output_is_that_of_the_mixture(model):
    images = drawn_images(model, 2)
    night = mixed_output(model, {'night': 1.0}, images)
    with model.forced('night'):
        forced = stock_output(model, images)
    assert torch.equal(night.logits, forced.logits)
    assert torch.equal(night.labels, forced.labels)
    mixed = mixed_output(model, MIXTURE, images)
    assert not torch.allclose(mixed.logits, night.logits, rtol=0, atol=1e-2)


def test_images_go_through_the_models_own_normalisation(model):
    images = drawn_images(model, 2)
    with model.forced('day'), torch.no_grad():
        samples = model.predict(images[:, [2, 1, 0]] / 127.5 - 1)
    ours = mixed_output(model, {'day': 1.0}, images)
    torch.testing.assert_close(ours.logits[1], samples[1].seg_logits.data)


def test_models_that_differ_are_told_apart(model):
    images = drawn_images(model, 1)

    def night(images):
        return mixed_output(model, {'night': 1.0}, images)

    same = compare(model, {'night': 1.0}, night, images, 'one')
    assert same.within(1e-6)
    assert same.images == 'one (128 x 160 pixels)'
    assert not compare(model, {'day': 1.0}, night, images, 'one').within(1e-3)


def test_drawn_images_are_pixels_of_the_size_asked_for(model):
    images = drawn_images(model, 2, (32, 48))
    assert images.shape == (2, 3, 32, 48)
    assert 0 <= images.min() < 50 and 200 < images.max() <= 255
    assert not torch.equal(images[0], images[1])
    assert torch.equal(images, drawn_images(model, 2, (32, 48)))


def test_image_is_loaded_as_the_pipeline_says(tmp_path):
    path = tmp_path / 'a.png'
    cv2.imwrite(str(path), np.full((8, 8, 3), (10, 20, 30), np.uint8))
    image = loaded_image(path, STEPS)
    assert image.shape == (1, 3, 16, 32)
    assert image[0, :, 0, 0].tolist() == [10, 20, 30]


def test_image_that_cannot_be_had_is_named(tmp_path):
    with pytest.raises(ValueError, match='there is no image .*a.png'):
        loaded_image(tmp_path / 'a.png', STEPS)
    (tmp_path / 'a.png').write_text('no image')
    with pytest.raises(ValueError, match='a.png cannot be loaded'):
        loaded_image(tmp_path / 'a.png', STEPS)
    with pytest.raises(ValueError, match='does not say how'):
        loaded_image(tmp_path / 'a.png', None)
