# SPDX-License-Identifier: Apache-2.0
"""Images of made-up domains."""
from __future__ import annotations

import torch

from mmseg_mile.benchmarks.domain_images import (blank_samples, domain_images,
                                                 training_images)


def test_batch_has_the_asked_shape(settings):
    images = domain_images(settings)
    assert images.shape == (2, 3, 64, 64)
    assert images.dtype == torch.uint8


def test_same_seed_same_images(settings):
    assert torch.equal(domain_images(settings), domain_images(settings))


def test_training_images_are_near_their_own_domain(settings):
    images = domain_images(settings)
    colours = images.float().mean((2, 3))
    for domain in range(2):
        for batch in training_images(images, domain, settings):
            colour = batch['inputs'][0].float().mean((1, 2))
            gaps = (colours - colour).norm(dim=1)
            assert gaps.argmin() == domain


def test_samples_know_the_size_of_their_image():
    sample, = blank_samples(torch.zeros(1, 3, 32, 64))
    assert sample.ori_shape == sample.img_shape == (32, 64)
