# SPDX-License-Identifier: Apache-2.0
"""Embeddings of images for gates, and augmented views to fit gates with."""
from __future__ import annotations

import math
import zlib
from typing import Any, Dict, List, Optional, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mmseg.registry import TASK_UTILS
from mmseg_mile.adapters.lora_expert_backbone import LoRAExpertBackbone

# Shape legend: B images, C channels, H x W grid, L positions, D embedding

_STATISTICS = ('mean', 'std')
_MIN_SIDE = 32
#: What :func:`perturbed_image` may change.
PERTURBATIONS = ('light', 'sharpness', 'noise')
# Half-widths of log-uniform draws, and bounds of uniform ones.
_GAIN = 0.3
_CONTRAST = 0.2
_SHARPNESS = (0.5, 1.0)
_NOISE = (0.0, 0.1)
_MIN_VIEW_SIDE = 8


def small_copy(images: Tensor,
               scale: float,
               min_side: int = _MIN_SIDE) -> Tensor:
    """Area-averaged copy, never below ``min_side`` pixels a side.

    Args:
        images (Tensor): (B, C, H, W).
        scale (float): Of each side, in (0, 1].
        min_side (int): In pixels. Defaults to 32.

    Returns:
        Tensor: (B, C, h, w); the images themselves where that is their size.
    """
    height, width = images.shape[2:]
    size = [
        min(side, max(min_side, round(side * scale)))
        for side in (height, width)
    ]
    if size == [height, width]:
        return images
    return F.interpolate(images, size=size, mode='area')


def deviation(features: Tensor, mean: Tensor) -> Tensor:
    """Standard deviation over space, dividing by L.

    Like ``features.std(2, unbiased=False)``, which takes several times as
    long on a CPU.

    Args:
        features (Tensor): (B, C, L).
        mean (Tensor): (B, C), over space.

    Returns:
        Tensor: (B, C).
    """
    offsets = features - mean[..., None]
    return torch.linalg.vector_norm(
        offsets, dim=2) / math.sqrt(features.shape[2])


def perturbed_image(image: Tensor,
                    number: int = 0,
                    kinds: Sequence[str] = PERTURBATIONS) -> Tensor:
    """A view of the image in other light, softer, and noisier.

    'light': every value is scaled by a gain within a factor of ``exp(0.3)``,
    the contrast about the mean within ``exp(0.2)``. 'sharpness': the image
    is averaged down to between half its size and all of it, and enlarged
    again. 'noise': Gaussian noise is added, of up to a tenth of the standard
    deviation of its values. Of an image, a number always draws the same:
    neither the order of images nor the random state matters.

    Args:
        image (Tensor): (C, H, W) before normalisation, of any channels,
            depth and type.
        number (int): Which copy. Defaults to 0.
        kinds (Sequence[str]): Of :data:`PERTURBATIONS`. Defaults to all.

    Returns:
        Tensor: (C, H, W), of the same type; integers are rounded and kept
        within their range.
    """
    draw = torch.Generator().manual_seed(
        zlib.crc32(image.cpu().numpy().tobytes()) + number)
    gain, contrast, sharpness, noise = torch.rand(4, generator=draw).tolist()
    x = image.float()
    if 'light' in kinds:
        mean = x.mean()
        x = mean + (x - mean) * math.exp(_CONTRAST * (2 * contrast - 1))
        x = x * math.exp(_GAIN * (2 * gain - 1))
    if 'sharpness' in kinds:
        low, high = _SHARPNESS
        x = _softened(x, low + sharpness * (high - low))
    if 'noise' in kinds:
        grain = torch.randn(x.shape, generator=draw).to(x.device)
        x = x + grain * x.std() * (_NOISE[0] + noise * (_NOISE[1] - _NOISE[0]))
    if image.is_floating_point():
        return x.to(image.dtype)
    limits = torch.iinfo(image.dtype)
    return x.round().clamp(limits.min, limits.max).to(image.dtype)


def augmented_views(
        batch: Dict[str, Any],
        count: int,
        kinds: Sequence[str] = PERTURBATIONS) -> List[Dict[str, Any]]:
    """A batch, and the same with perturbed copies of its images.

    Args:
        batch (dict): ``inputs`` are the images, before normalisation.
        count (int): Batches that are wanted, this one included.
        kinds (Sequence[str]): See :func:`perturbed_image`.
    """
    copies = [
        dict(
            batch,
            inputs=[
                perturbed_image(image, n, kinds) for image in batch['inputs']
            ]) for n in range(count - 1)
    ]
    return [batch, *copies]


def _softened(x: Tensor, scale: float) -> Tensor:
    """Less sharp: detail finer than ``1 / scale`` pixels is gone."""
    small = small_copy(x[None], scale, _MIN_VIEW_SIDE)
    return F.interpolate(small, size=x.shape[1:], mode='bilinear')[0]


@TASK_UTILS.register_module()
class FeatureStatisticsEmbedder:
    """Mean and standard deviation over space of chosen stages of the base.

    Adapters are off, so an embedding never moves when experts come and go.
    The defaults are what MILE (arXiv 2605.03555) is read to use; mean and
    deviation of early stages carry weather, light and sensor.

    Args:
        stages (Sequence[int], optional): Indices into the backbone's
            outputs; None takes all. Defaults to the last.
        statistics (Sequence[str]): Of 'mean' and 'std', over space.
            Defaults to the mean.
        scale (float): Resolution of the gate's copy of the image, relative
            to the segmentor's input, in (0, 1]. Defaults to 1.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self,
                 stages: Optional[Sequence[int]] = (-1, ),
                 statistics: Sequence[str] = ('mean', ),
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


@TASK_UTILS.register_module()
class ThumbnailEmbedder:
    """An area-averaged copy of the image, one size for all images.

    For gates that look at pixels, such as :class:`ConvAutoencoderGate`.
    Images of another aspect ratio are squeezed.

    Args:
        size (Sequence[int]): Height and width. Defaults to (48, 64).

    Raises:
        ValueError: If a side is less than 1.
    """

    def __init__(self, size: Sequence[int] = (48, 64)) -> None:
        if len(size) != 2 or min(size) < 1:
            raise ValueError('embedder.size must be height and width, both '
                             f'>= 1, got {tuple(size)}')
        self.size = tuple(size)

    @torch.no_grad()
    def __call__(self, backbone: Any, images: Tensor) -> Tensor:
        """Embed a batch.

        Args:
            backbone (LoRAExpertBackbone): Not asked.
            images (Tensor): (B, C, H, W), normalised as for the segmentor.

        Returns:
            Tensor: (B, C * height * width) float32, channels outermost.
        """
        small = F.interpolate(images.float(), size=self.size, mode='area')
        return small.flatten(1)
