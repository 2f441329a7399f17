# SPDX-License-Identifier: Apache-2.0
"""Deviation over space."""
from __future__ import annotations

import torch

from mmseg_mile.gates.embedders import deviation


def test_deviation_is_that_of_torch():
    features = torch.rand(2, 3, 500) * torch.tensor([1e-3, 1, 100])[:, None]
    torch.testing.assert_close(
        deviation(features, features.mean(2)), features.std(2, unbiased=False))


def test_small_spread_about_a_large_mean_is_not_lost():
    features = 1000 + torch.tensor([[[-0.5, 0.5, 0.5, -0.5]]])
    assert deviation(features, features.mean(2)).tolist() == [[0.5]]


def test_constant_map_has_none():
    features = torch.full((1, 2, 7), 0.1)
    assert float(deviation(features, features.mean(2)).max()) < 1e-7
