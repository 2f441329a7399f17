# SPDX-License-Identifier: Apache-2.0
"""What an image looks like to the frozen base."""
from __future__ import annotations

from typing import List, Optional, Sequence

import torch
from torch import Tensor

from mmseg.registry import TASK_UTILS
from ..backbones import LoRAExpertBackbone
from .small_copies import small_copy
from .spatial_statistics import deviation

_STATISTICS = ('mean', 'std')
# Shape legend: B images, C channels, H x W grid, D embedding


@TASK_UTILS.register_module()
class FeatureStatisticsEmbedder:
    """Mean and standard deviation over space of chosen stages of the base.

    Adapters are off, so an embedding never moves when experts come and go.
    The mean of the last stage is what MILE (arXiv 2605.03555) is read to
    use; early stages carry weather, light and sensor.

    Args:
        stages (Sequence[int], optional): Indices into the backbone's
            outputs; None takes all. Defaults to None.
        statistics (Sequence[str]): Of 'mean' and 'std', over space.
            Defaults to both.
        scale (float): Resolution of the gate's copy of the image, relative
            to the segmentor's input, in (0, 1]. Defaults to 1.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self,
                 stages: Optional[Sequence[int]] = None,
                 statistics: Sequence[str] = _STATISTICS,
                 scale: float = 1.0) -> None:
        if not statistics or set(statistics) - set(_STATISTICS):
            raise ValueError(f'embedder.statistics must be some of '
                             f'{_STATISTICS}, got {tuple(statistics)}')
        if not 0 < scale <= 1:
            raise ValueError(f'embedder.scale must be in (0, 1], got {scale}')
        if stages is not None and not len(stages):
            raise ValueError('embedder.stages is empty: name stages, or give '
                             'None for all')
        self.stages = None if stages is None else tuple(stages)
        self.statistics = tuple(statistics)
        self.scale = scale

    @torch.no_grad()
    def __call__(self, backbone: LoRAExpertBackbone, images: Tensor) -> Tensor:
        """Embed a batch.

        Args:
            backbone (LoRAExpertBackbone): Runs without experts.
            images (Tensor): (B, C, H, W), normalised as for the segmentor.

        Returns:
            Tensor: (B, D) float32.

        Raises:
            ValueError: If a chosen stage does not exist.
        """
        outputs = self._outputs(backbone, small_copy(images, self.scale))
        stages = range(len(outputs)) if self.stages is None else self.stages
        outside = [s for s in stages if not -len(outputs) <= s < len(outputs)]
        if outside:
            raise ValueError(
                f'embedder.stages {outside} do not exist: the backbone has '
                f'{len(outputs)} outputs, 0 to {len(outputs) - 1}')
        parts: List[Tensor] = []
        for stage in stages:
            features = outputs[stage].float().flatten(2)
            mean = features.mean(2)
            if 'mean' in self.statistics:
                parts.append(mean)
            if 'std' in self.statistics:
                parts.append(deviation(features, mean))
        return torch.cat(parts, dim=1)

    def _outputs(self, backbone: LoRAExpertBackbone,
                 images: Tensor) -> Sequence[Tensor]:
        """The base's outputs, as far as stages are counted from the first."""
        if self.stages is not None and min(self.stages) >= 0:
            return backbone.base_features(images, max(self.stages) + 1)
        with backbone.base():
            outputs = backbone(images)
        return (outputs, ) if isinstance(outputs, Tensor) else outputs
