# SPDX-License-Identifier: Apache-2.0
"""Weights of sensors, and the sums that they make."""
from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mmseg_mile.methods import SensorRouter

# S = 3 subsets of one image: both sensors, the first, the second
SUBSETS = torch.tensor([[[True, True]], [[True, False]], [[False, True]]])


def router_of(mode: str, **changes: Any) -> SensorRouter:
    """A router of two sensors and levels of 2 and 4 channels."""
    router = SensorRouter([2, 4],
                          **dict(dict(mode=mode, add_mean=False), **changes))
    for name in ('rgb', 'thermal'):
        router.add_sensor(name)
    return router


def maps(generator: torch.Generator) -> list[list[Any]]:
    """Two levels of two sensors of one image."""
    return [[torch.rand(1, c, s, s, generator=generator) for _ in range(2)]
            for c, s in ((2, 8), (4, 2))]


def disturb(router: SensorRouter) -> None:
    """Let the scorers say something."""
    for parameter in router.parameters():
        torch.nn.init.normal_(parameter)


@pytest.mark.parametrize('mode', ['mean', 'scene', 'level', 'pixel'])
def test_every_router_starts_as_the_mean_of_the_present(mode):
    levels = maps(torch.Generator().manual_seed(0))
    for fused, (rgb, thermal) in zip(router_of(mode)(levels, SUBSETS), levels):
        expected = torch.cat([(rgb + thermal) / 2, rgb, thermal])
        torch.testing.assert_close(fused, expected)


@pytest.mark.parametrize('mode, shape', [
    ('scene', (1, 1)), ('level', (1, 1)), ('pixel', (8, 8))])  # yapf: disable
def test_scores_weigh_at_the_promised_places(mode, shape):
    router = router_of(mode)
    disturb(router)
    # a constant sensor of ones, and one of zeros: the sum shows the weight
    levels = [[m[0].mul(0).add(1), m[1].mul(0)]
              for m in maps(torch.Generator().manual_seed(0))]
    levels[-1][1] = torch.rand(1, 4, 2, 2)
    fine = router(levels, SUBSETS[:1])[0]
    assert 0 < float(fine.min()) and float(fine.max()) < 1
    distinct = len(fine[0, 0].unique())
    assert distinct == 1 if shape == (1, 1) else distinct > 4


def test_scene_weights_are_the_softmax_of_the_scores():
    router = router_of('scene')
    router.scorers['rgb'][0].bias.data.fill_(math.log(3.0))
    levels = maps(torch.Generator().manual_seed(0))
    rgb, thermal = levels[0]
    fused = router(levels, SUBSETS[:1])[0]
    torch.testing.assert_close(fused, 0.75 * rgb + 0.25 * thermal)
    torch.testing.assert_close(router.weights, torch.tensor([[[0.75, 0.25]]]))


def test_paper_adds_the_mean_to_the_weighted_sum():
    router = router_of('scene', add_mean=True)
    router.scorers['rgb'][0].bias.data.fill_(math.log(3.0))
    levels = maps(torch.Generator().manual_seed(0))
    rgb, thermal = levels[0]
    both, first, _ = router(levels, SUBSETS)[0]
    torch.testing.assert_close(both, (1.25 * rgb + 0.75 * thermal)[0])
    torch.testing.assert_close(first, 2 * rgb[0])


def test_level_weights_differ_between_levels():
    router = router_of('level')
    router.scorers['rgb'][0].bias.data.fill_(math.log(3.0))
    levels = maps(torch.Generator().manual_seed(0))
    fine, coarse = router(levels, SUBSETS[:1])
    torch.testing.assert_close(fine, 0.75 * levels[0][0] + 0.25 * levels[0][1])
    torch.testing.assert_close(coarse, (levels[1][0] + levels[1][1]) / 2)


@pytest.mark.parametrize('mode', ['mean', 'scene', 'level', 'pixel'])
def test_absent_sensor_changes_no_bit(mode):
    router = router_of(mode)
    disturb(router)
    levels = maps(torch.Generator().manual_seed(0))
    alone = router([[rgb, None] for rgb, _ in levels], SUBSETS[1:2])
    beside = router(levels, SUBSETS[1:2])
    for one, other in zip(alone, beside):
        assert torch.equal(one, other)


def test_versions_of_a_sensor_share_its_scorer():
    router = router_of('scene')
    disturb(router)
    levels = maps(torch.Generator().manual_seed(0))
    twice = [list(level) * 2 for level in levels]
    none = torch.zeros_like(SUBSETS)
    expected = router(levels, SUBSETS)
    second = router(twice, torch.cat([none, SUBSETS], -1))
    for one, other in zip(second, expected):
        assert torch.equal(one, other)


@pytest.mark.parametrize('changes, message', [
    (dict(mode='best'), 'mode must be one of'),
    (dict(mode='mean', add_mean=True), 'add_mean=False'),
])  # yapf: disable
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SensorRouter([2, 4], **changes)


def test_levels_of_other_channels_are_refused():
    levels = maps(torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r'\[4, 2\]'):
        router_of('scene')(levels[::-1], SUBSETS)
