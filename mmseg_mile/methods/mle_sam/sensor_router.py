# SPDX-License-Identifier: Apache-2.0
"""The router of MLE-SAM: how much each present sensor counts."""
from __future__ import annotations

from typing import Any, List, Optional, Sequence, Tuple

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from mmseg.registry import MODELS

# Shape legend: S subsets, B images, M sensors, C channels of a level, h x w
# its grid

MODES = ('mean', 'scene', 'level', 'pixel')
#: Maps of one level by sensor, (B, C, h, w); None where no image has it.
SensorMaps = Sequence[Optional[Tensor]]


@MODELS.register_module()
class SensorRouter(BaseModule):
    """Weighted sum of the sensors' features, level by level.

    Each sensor m has a scorer of its own, ``s_m = v_m . LN(f_m) + c_m``, so
    that sensors can come and go. The weights are a softmax of the scores over
    those sensors that are present. Scorers start at zero, which makes the
    router start as the plain mean.

    MLE-SAM (arXiv 2412.04220, eq. 8-9) scores the spatial mean of each
    sensor's embedding, here of the last level, and adds the mean of the
    sensors to their weighted sum: ``mode='scene'`` and ``add_mean=True``.
    Departures: the embedding is normalised first, since sensors whose
    features are large would win by that alone, and no top-k, whose value the
    paper does not say and which does not save any time behind the backbone.

    Args:
        in_channels (Sequence[int]): Channels of each level.
        mode (str): What is scored. 'mean': nothing, all sensors count alike;
            'scene': the last level, pooled; 'level': each level, pooled, for
            itself; 'pixel': each position of the last level. Defaults to
            'scene'.
        add_mean (bool): Whether the mean of the present sensors is added to
            the weighted sum. Defaults to True.

    Raises:
        ValueError: If the mode is unknown, or adds the mean to itself, or,
            from a call, if the levels have other channels.

    Attributes:
        weights (Tensor): (S, B, M), the softmax of the last call, averaged
            over levels and positions.
    """

    def __init__(self,
                 in_channels: Sequence[int],
                 mode: str = 'scene',
                 add_mean: bool = True) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f'model.router.mode must be one of {MODES}, got '
                             f'{mode!r}')
        if mode == 'mean' and add_mean:
            raise ValueError("model.router.mode='mean' is the mean already: "
                             'say add_mean=False')
        self.in_channels = tuple(in_channels)
        self.mode = mode
        self.add_mean = add_mean
        self.scorers = nn.ModuleDict()
        self.weights: Optional[Tensor] = None

    def add_sensor(self, name: str) -> None:
        """A new scorer, which makes no difference yet."""
        channels = dict(
            mean=(), level=self.in_channels).get(self.mode,
                                                 self.in_channels[-1:])
        scorers = [nn.Linear(count, 1) for count in channels]
        for scorer in scorers:
            nn.init.zeros_(scorer.weight)
            nn.init.zeros_(scorer.bias)
        self.scorers[name] = nn.ModuleList(scorers)

    def forward(self, levels: Sequence[SensorMaps],
                present: Tensor) -> Tuple[Tensor, ...]:
        """Features of each subset of the sensors.

        Args:
            levels (Sequence[Sequence[Tensor | None]]): Of each level the
                maps of M sensors, or of k versions of them, k M, in the order
                in which they were added. Where an image lacks a sensor its
                values must be finite, and are not used.
            present (Tensor): (S, B, k M) bool, the sensors that count in
                each subset; one at least.

        Returns:
            tuple[Tensor]: (S B, C, h, w) of each level, subset by subset.
        """
        found = [next(m.shape[1] for m in maps if m is not None)
                 for maps in levels]  # yapf: disable
        if tuple(found) != self.in_channels:
            raise ValueError(
                f'the backbone (and neck) give levels of {found} channels, '
                f'model.router.in_channels are {list(self.in_channels)}')
        mean = present / present.sum(-1, keepdim=True)
        fused, used = [], []
        shared = None if self.mode == 'level' else self._scores(levels[-1], 0)
        for index, maps in enumerate(levels):
            scores = self._scores(maps, index) if shared is None else shared
            weights = self._softmax(scores, present, maps)
            used.append(weights.detach().mean((-2, -1)))
            if self.add_mean:
                weights = weights + mean[..., None, None]
            fused.append(_weighted_sum(maps, weights))
        self.weights = torch.stack(used).mean(0)
        return tuple(fused)

    def _scores(self, maps: SensorMaps, index: int) -> Tensor:
        """(B, M, h, w) scores of a level, or (B, M, 1, 1) of a scene."""
        first = next(m for m in maps if m is not None)
        size = first.shape[-2:] if self.mode == 'pixel' else (1, 1)
        names = list(self.scorers)
        scores: List[Tensor] = []
        for number, sensor_map in enumerate(maps):
            if self.mode == 'mean' or sensor_map is None:
                scores.append(first.new_zeros(len(first), *size))
                continue
            x = sensor_map
            if self.mode != 'pixel':
                x = x.mean((2, 3), keepdim=True)
            x = x.permute(0, 2, 3, 1)
            scorers: Any = self.scorers[names[number % len(names)]]
            x = F.layer_norm(x, x.shape[-1:])
            scores.append(scorers[index](x).squeeze(-1))
        return torch.stack(scores, 1)

    def _softmax(self, scores: Tensor, present: Tensor,
                 maps: SensorMaps) -> Tensor:
        """(S, B, M, h, w) or (S, B, M, 1, 1) weights, 0 where absent."""
        if scores.shape[-2:] != (1, 1):
            size = next(m.shape[-2:] for m in maps if m is not None)
            scores = F.interpolate(
                scores, size, mode='bilinear', align_corners=False)
        absent = ~present[..., None, None]
        return scores.masked_fill(absent, float('-inf')).softmax(2)


def _weighted_sum(maps: SensorMaps, weights: Tensor) -> Tensor:
    """(S B, C, h, w) of M maps (B, C, h, w) and weights (S, B, M, ...)."""
    total: Optional[Tensor] = None
    for index, sensor_map in enumerate(maps):
        if sensor_map is not None:
            term = weights[:, :, index, None] * sensor_map
            total = term if total is None else total + term
    assert total is not None
    return total.flatten(0, 1)
