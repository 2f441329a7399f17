# SPDX-License-Identifier: Apache-2.0
"""Images that show what a backbone does."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from mmseg_mile.adapters.targets import probe_images


def net(**fields: object) -> nn.Module:
    """A network of one convolution on five channels."""
    module = nn.Sequential(nn.Conv2d(5, 2, 1))
    vars(module).update(fields)
    return module


@pytest.mark.parametrize('fields, size', [
    (dict(), (48, 48)),
    (dict(img_size=32), (32, 32)),
    (dict(img_size=(32, 64)), (32, 64)),
    (dict(img_size=[32, 64]), (32, 64)),
])  # yapf: disable
def test_size_is_the_one_that_a_backbone_is_bound_to(fields, size):
    assert probe_images(net(**fields), 2, side=48).shape == (2, 5, *size)


def test_network_without_a_convolution_sees_three_channels():
    assert probe_images(nn.Linear(4, 4), 1).shape == (1, 3, 128, 128)


def test_type_is_that_of_the_weights():
    assert probe_images(net().double(), 1).dtype == torch.float64


def test_images_differ_from_each_other_and_not_from_call_to_call():
    one, two = probe_images(net(), 2)
    assert not torch.allclose(one, two)
    assert torch.equal(probe_images(net(), 2)[1], two)
    assert one.min() >= -1 and one.max() <= 1 and one.std() > 0.5


def test_random_numbers_of_a_run_are_left_alone():
    backbone = net()
    before = torch.get_rng_state()
    probe_images(backbone, 1)
    assert torch.equal(torch.get_rng_state(), before)
