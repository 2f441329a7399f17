# SPDX-License-Identifier: Apache-2.0
"""Routing of images in other light and quality than learned."""
from __future__ import annotations

import copy

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from tiny import TINY_MODEL

from mmseg.registry import MODELS
from mmseg_mile.apis.perturbation_study import (DISTURBANCES, compressed,
                                                noisy, perturbation_study,
                                                scaled, softened)
from mmseg_mile.gates.embedders import FeatureStatisticsEmbedder

GREY = torch.full((3, 32, 48), 100, dtype=torch.uint8)


def texture(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, 32, 48), generator=generator).byte()


@pytest.mark.parametrize('gain, value', [(0.8, 80), (1.2, 120), (3, 255)])
def test_scaling_keeps_within_the_range(gain, value):
    assert (scaled(gain)(GREY) == value).all()


@pytest.mark.parametrize('change', [softened(0.5), compressed(50)])
def test_detail_is_lost_and_the_mean_stays(change):
    image, changed = texture().float(), change(texture()).float()
    assert changed.shape == image.shape
    assert changed.std() < 0.8 * image.std()
    assert float(changed.mean()) == pytest.approx(float(image.mean()), abs=4)


def test_noise_has_the_deviation_and_comes_again():
    changed = noisy(8)(GREY)
    assert float(changed.float().std()) == pytest.approx(8, rel=0.1)
    assert torch.equal(changed, noisy(8)(GREY))


def test_every_quality_is_routed_by_every_gate():
    init_default_scope('mmseg')
    model = MODELS.build(copy.deepcopy(ConfigDict(TINY_MODEL))).eval()
    embedders = dict(
        first=FeatureStatisticsEmbedder(stages=(0, )),
        last=FeatureStatisticsEmbedder(stages=(-1, )))

    def loader(seed, shade):
        generator = torch.Generator().manual_seed(seed)
        images = shade + 40 * torch.rand(16, 3, 32, 48, generator=generator)
        return [dict(inputs=list(images.byte()[i:i + 4])) for i in (0, 4, 8)]

    images = {
        name: (loader(0, shade), loader(1, shade))
        for name, shade in (('dark', 0), ('light', 200))
    }
    table = perturbation_study(model, images, embedders, [0, 0.25])
    rows = [dict(zip(table.field_names, row)) for row in table.rows]
    assert [(r['embedding'], r['drift weight']) for r in rows] == [
        ('first', 0), ('first', 0.25), ('last', 0), ('last', 0.25)
    ]  # yapf: disable
    assert table.field_names[3:] == list(DISTURBANCES)
    for row in rows:
        right = [float(row[label].split(' / ')[0]) for label in DISTURBANCES]
        assert right[0] == 100 and min(right) >= 50
