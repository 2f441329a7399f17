# SPDX-License-Identifier: Apache-2.0
"""Values of maps at points, as mmcv's own function gives them."""
from __future__ import annotations

import importlib.util
from pathlib import Path

import mmcv
import pytest
import torch

import mmseg.models.decode_heads.san_head as san_head
from mmseg_mile.methods.semla import side_adapter_clip as point_sampling


@pytest.fixture(scope='module')
def mmcvs_own():
    """The function from its file; the package may lack its compiled part."""
    path = Path(mmcv.__file__).parent / 'ops' / 'point_sample.py'
    spec = importlib.util.spec_from_file_location('stock_point_sample', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.point_sample


def test_centres_of_pixels_have_their_values():
    maps = torch.tensor([[[[1.0, 3.0]]]])
    points = torch.tensor([[[0.25, 0.5], [0.75, 0.5], [0.5, 0.5]]])
    assert point_sampling.point_sample(maps, points).tolist() == [[[1, 3, 2]]]


@pytest.mark.parametrize('options', [{}, dict(align_corners=True)])
def test_values_are_those_of_mmcvs_own(mmcvs_own, options):
    maps, points = torch.randn(2, 3, 5, 7), torch.rand(2, 11, 2)
    torch.testing.assert_close(
        point_sampling.point_sample(maps, points, **options),
        mmcvs_own(maps, points, **options))


def test_what_mmcv_provides_is_left_alone(monkeypatch):
    theirs = object()
    monkeypatch.setattr(san_head, 'point_sample', theirs)
    point_sampling.provide_point_sample()
    assert san_head.point_sample is theirs


def test_gap_is_filled(monkeypatch):
    modules = (san_head, point_sampling.uncertain_points,
               point_sampling.mask_classification)
    for module in modules:
        monkeypatch.setattr(module, 'point_sample', None)
    name = 'get_uncertain_point_coords_with_randomness'
    monkeypatch.setattr(san_head, name, None)
    point_sampling.provide_point_sample()
    for module in modules:
        assert module.point_sample is point_sampling.point_sample
    points = getattr(san_head, name)(torch.randn(2, 1, 5, 5), None, 8, 3.0,
                                     0.75)
    assert points.shape == (2, 8, 2)
    assert points.min() >= 0 and points.max() <= 1
