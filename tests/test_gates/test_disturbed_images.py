# SPDX-License-Identifier: Apache-2.0
"""Copies in other light, softer and noisier, always the same of an image."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.gates.embedders import augmented_views, perturbed_image


def image_of(seed, dtype=torch.uint8, channels=3):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(channels, 24, 32, generator=generator)
    return (40 + 150 * values).to(dtype)


def roughness(image):
    return float((image[:, :, 1:] - image[:, :, :-1]).abs().mean())


def test_copy_follows_from_the_image_and_its_number_alone():
    image = image_of(0)
    first = perturbed_image(image)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert torch.equal(perturbed_image(image.clone()), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(perturbed_image(image, 1), first)
    assert not torch.equal(first, image)


def test_light_sharpness_and_noise_vary_from_image_to_image():
    images = [image_of(seed).float() for seed in range(40)]
    copies = [perturbed_image(image) for image in images]
    gains = [float(c.mean() / i.mean()) for c, i in zip(copies, images)]
    assert 0.7 < min(gains) < 0.85 and 1.2 < max(gains) < 1.4
    # of white noise most is averaged away where it is softened
    ratios = [roughness(c) / roughness(i) for c, i in zip(copies, images)]
    assert min(ratios) < 0.4 < 0.7 < max(ratios)


def test_noise_is_added():
    # without texture of its own there is nothing to soften
    image = torch.zeros(1, 24, 32)
    image[:, 12:] = 100
    copy = perturbed_image(image)
    assert copy[:, :6].std() > 0


@pytest.mark.parametrize('dtype, channels', [(torch.uint8, 3),
                                             (torch.int16, 1),
                                             (torch.float32, 4)])
def test_type_and_shape_stay(dtype, channels):
    image = image_of(1, dtype, channels)
    copy = perturbed_image(image)
    assert copy.dtype == dtype and copy.shape == image.shape


def test_integers_stay_in_their_range():
    bright = torch.full((3, 24, 32), 250, dtype=torch.uint8)
    bright[:, :, 16:] = 0
    copies = torch.stack([perturbed_image(bright, n) for n in range(16)])
    # what is brighter than white is white, and not black again
    assert copies[..., :12].max() == 255 and copies[..., :12].min() > 100
    assert copies[..., 20:].min() == 0 and copies[..., 20:].max() < 120


def test_looks_are_the_batch_and_copies_of_it():
    batch = dict(inputs=[image_of(0), image_of(1)], data_samples=['a', 'b'])
    own, first, second = augmented_views(batch, 3)
    assert own is batch
    for number, look in enumerate((first, second)):
        assert look['data_samples'] == ['a', 'b']
        for image, copy in zip(batch['inputs'], look['inputs']):
            assert torch.equal(copy, perturbed_image(image, number))
    assert augmented_views(batch, 1) == [batch]
