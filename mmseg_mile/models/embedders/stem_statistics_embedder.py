# SPDX-License-Identifier: Apache-2.0
"""What an image looks like to the first layer of the frozen base."""
from __future__ import annotations

from typing import Any, List, Sequence

import torch
from torch import Tensor, nn

from mmseg.registry import TASK_UTILS
from ..backbones import LoRAExpertBackbone
from .small_copies import small_copy
from .spatial_statistics import deviation

# Shape legend: B images, C channels, H x W grid, L tokens, D embedding


@TASK_UTILS.register_module()
class StemStatisticsEmbedder:
    """Mean and standard deviation over space of the base's first layer.

    The first layer is a bank of edge, colour and texture filters, cheap
    enough for the image at full resolution. There the grain of sensor, lens,
    weather and light shows that small copies average away; it tells domains
    apart that show the same streets. Adapters are off, so an embedding never
    moves when experts come and go.

    Args:
        module (str): Name of a module of the base that takes the image, such
            as 'conv1' of MobileNetV2, 'stem' of ResNetV1c, 'patch_embed' of
            Swin or 'layers.0.0' of MiT. Defaults to 'conv1'.
        scales (Sequence[float]): Resolutions of the image at which it is
            asked, relative to the segmentor's input, in (0, 1]. Defaults to
            (1.0, 0.5).

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self,
                 module: str = 'conv1',
                 scales: Sequence[float] = (1.0, 0.5)) -> None:
        if not module:
            raise ValueError('embedder.module is empty: name a module of the '
                             'base that takes the image')
        if not scales or not all(0 < scale <= 1 for scale in scales):
            raise ValueError('embedder.scales must be one or more numbers in '
                             f'(0, 1], got {tuple(scales)}')
        self.module = module
        self.scales = tuple(scales)

    @torch.no_grad()
    def __call__(self, backbone: LoRAExpertBackbone, images: Tensor) -> Tensor:
        """Embed a batch.

        Args:
            backbone (LoRAExpertBackbone): Runs without experts.
            images (Tensor): (B, C, H, W), normalised as for the segmentor.

        Returns:
            Tensor: (B, D) float32; scale by scale, means before deviations.

        Raises:
            ValueError: If the base has no such module, or it does not take
                images.
        """
        parts: List[Tensor] = []
        with backbone.base():
            layer = self._layer(backbone.backbone)
            for scale in self.scales:
                features = self._features(layer, small_copy(images, scale))
                mean = features.mean(2)
                parts += [mean, deviation(features, mean)]
        return torch.cat(parts, dim=1)

    def _layer(self, base: nn.Module) -> nn.Module:
        try:
            return base.get_submodule(self.module)
        except AttributeError as error:
            known = [name for name, _ in base.named_children()]
            raise ValueError(
                f'embedder.module {self.module!r} is no module of the base, '
                f'a {type(base).__name__}; its own are {known}') from error

    def _features(self, layer: nn.Module, images: Tensor) -> Tensor:
        """(B, C, L) of a convolution's map or of a patch embedding."""
        try:
            outputs: Any = layer(images)
        except RuntimeError as error:
            raise ValueError(
                f'embedder.module {self.module!r} does not take images of '
                f'{images.shape[1]} channels: {error}') from error
        if isinstance(outputs, Tensor) and outputs.dim() == 4:
            return outputs.float().flatten(2)
        if isinstance(outputs, tuple) and outputs[0].dim() == 3:
            # mmseg's patch embeddings: (B, L, C) tokens and their grid
            return outputs[0].float().transpose(1, 2)
        raise ValueError(f'embedder.module {self.module!r} gives neither a '
                         'feature map nor tokens')
