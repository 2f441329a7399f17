# SPDX-License-Identifier: Apache-2.0
"""What an image looks like to CLIP."""
from __future__ import annotations

import math
from typing import Any, Dict, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmseg.registry import TASK_UTILS
from .clip_encoder import CLIPEncoder, CLIPSource

_CROPS = ('center', 'squeeze')
_ORDERS = ('rgb', 'bgr')
# Pixels of an image file; a little beside it is rounding.
_WHITE = 255.0
_SLACK = 1.0
Values = Optional[Tuple[float, ...]]
# Shape legend: B images, C channels, H x W pixels, D embedding


@TASK_UTILS.register_module()
class CLIPEmbedder:
    """Projected image features of CLIP, not normalised.

    The index of SemLA (Qorbani et al., CVPR 2025, arXiv 2503.21780, public
    code): ``openai/clip-vit-large-patch14``, 768 values. The encoder is
    another frozen network beside the segmentor. It is loaded when the first
    image comes, which is before the first task is trained, and is no part of
    the segmentor's weights nor of its library: who predicts needs it too.

    Images come normalised as for the segmentor. To give CLIP its own
    normalisation, that must be undone: :meth:`look_through` takes the numbers
    from the segmentor's preprocessor; without it, ``mean`` and ``std`` must
    be given. Images of one channel, such as thermal ones, become grey.

    Args:
        model (str): Folder of a saved CLIP, or its name on the Hugging Face
            hub. With ``library='open_clip'``: an architecture, or
            'hf-hub:OWNER/NAME' or 'local-dir:FOLDER'.
        mean (Sequence[float], optional): The preprocessor's, in units of
            pixels from 0 to 255, one value per channel or one for all.
            Defaults to None: as the preprocessor says.
        std (Sequence[float], optional): Like ``mean``.
        channel_order (str, optional): 'rgb' or 'bgr', of images of three
            channels after the preprocessor. Defaults to None: as the
            preprocessor says, 'rgb' where none was shown.
        crop (str): 'center' scales the shorter side to the encoder's and
            cuts off what sticks out of the square, as CLIP's own processor
            and the paper do: of a street image twice as wide as high, half.
            'squeeze' shows all of it, in another aspect ratio. Defaults to
            'center'.
        library (str): 'transformers' or 'open_clip', whichever is
            installed. Defaults to 'transformers'.
        pretrained (str, optional): Weights of an open_clip architecture, a
            tag or a file. Defaults to None.

    Raises:
        ValueError: If an argument is out of range, the library is not
            installed, or the folder does not exist.
    """

    def __init__(self,
                 model: str,
                 mean: Optional[Sequence[float]] = None,
                 std: Optional[Sequence[float]] = None,
                 channel_order: Optional[str] = None,
                 crop: str = 'center',
                 library: str = 'transformers',
                 pretrained: Optional[str] = None) -> None:
        if crop not in _CROPS:
            raise ValueError(f'embedder.crop must be one of {_CROPS}, got '
                             f'{crop!r}')
        if channel_order not in (None, *_ORDERS):
            raise ValueError('embedder.channel_order must be one of '
                             f'{_ORDERS} or None, got {channel_order!r}')
        if (mean is None) != (std is None):
            raise ValueError(
                'embedder.mean and embedder.std belong together: give both, '
                f'or neither, got mean={mean}, std={std}')
        if std is not None and not min(std) > 0:
            raise ValueError(f'embedder.std must be > 0, got {std}')
        self.source = CLIPSource(library, model, pretrained)
        self.mean = _tuple(mean)
        self.std = _tuple(std)
        self.channel_order = channel_order
        self.crop = crop
        self._encoder: Optional[CLIPEncoder] = None

    def __getstate__(self) -> Dict[str, Any]:
        """Without the network, which a copy finds or loads again."""
        return dict(self.__dict__, _encoder=None)

    def look_through(self, preprocessor: nn.Module) -> None:
        """Learn how the images of a segmentor are normalised.

        Args:
            preprocessor (SegDataPreProcessor): Of the segmentor.

        Raises:
            ValueError: If the config says otherwise.
        """
        found: Any = preprocessor
        mean: Values = (0.0, )
        std: Values = (1.0, )
        if getattr(found, '_enable_normalize', False):
            mean = _tuple(found.mean.flatten().tolist())
            std = _tuple(found.std.flatten().tolist())
        # mmcv's loader gives blue first
        turned = getattr(found, '_channel_conversion', False)
        self.mean = self._agreed('mean', mean)
        self.std = self._agreed('std', std)
        self.channel_order = self._agreed('channel_order',
                                          _ORDERS[0 if turned else 1])

    @torch.no_grad()
    def __call__(self, backbone: Any, images: Tensor) -> Tensor:
        """Embed a batch.

        Args:
            backbone (LoRAExpertBackbone): Not asked.
            images (Tensor): (B, C, H, W), normalised as for the segmentor; C
                is 1 or 3.

        Returns:
            Tensor: (B, D) float32.

        Raises:
            ValueError: If the weights cannot be loaded, or the images are
                not what ``mean`` and ``std`` were said to make of pixels.
        """
        if self._encoder is None or _device(self._encoder) != images.device:
            self._encoder = self.source.load(images.device)
        encoder = self._encoder
        pixels = self._fit(self._pixels(images) / _WHITE, encoder.side)
        mean, std = (
            pixels.new_tensor(v)[:, None, None]
            for v in (encoder.mean, encoder.std))
        # an embedding must not depend on the precision of predictions
        with torch.autocast(images.device.type, enabled=False):
            return encoder.encode((pixels - mean) / std).float()

    def _agreed(self, field: str, found: Any) -> Any:
        mine = getattr(self, field)
        if mine is not None and not _same(mine, found):
            raise ValueError(
                f'embedder.{field}={mine} is not what the segmentor has, '
                f'{found}: leave it out, or change model.data_preprocessor')
        return found

    def _pixels(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) red, green and blue from 0 to 255."""
        channels = images.shape[1]
        if channels not in (1, 3):
            raise ValueError(
                f'CLIPEmbedder sees images of 1 or 3 channels, got '
                f'{channels}: use FeatureStatisticsEmbedder for this sensor')
        if self.mean is None or self.std is None:
            raise ValueError(
                'embedder.mean and embedder.std are missing: give those of '
                'model.data_preprocessor, so that the segmentor\'s '
                'normalisation can be undone')
        for field, values in (('mean', self.mean), ('std', self.std)):
            if len(values) not in (1, channels):
                raise ValueError(
                    f'embedder.{field} has {len(values)} values, the images '
                    f'have {channels} channels: give one per channel')
        mean, std = (
            images.new_tensor(v, dtype=torch.float32)[:, None, None]
            for v in (self.mean, self.std))
        pixels = images.float() * std + mean
        low, high = (float(v) for v in pixels.aminmax())
        if not -_SLACK <= low <= high <= _WHITE + _SLACK:
            raise ValueError(
                f'embedder.mean={self.mean} and embedder.std={self.std} make '
                f'pixels from {low:.1f} to {high:.1f} of the images, not '
                'from 0 to 255: give those of model.data_preprocessor')
        if channels == 3 and self.channel_order == 'bgr':
            pixels = pixels.flip(1)
        return pixels.expand(-1, 3, -1, -1)

    def _fit(self, pixels: Tensor, side: int) -> Tensor:
        """(B, 3, side, side), resized as Pillow does."""
        height, width = pixels.shape[2:]
        size = (side, side)
        if self.crop == 'center':
            short = min(height, width)
            size = (side * height // short, side * width // short)
        # a bicubic curve swings beyond the values that it joins
        small = F.interpolate(
            pixels, size=size, mode='bicubic', antialias=True).clamp(0, 1)
        top, left = ((length - side) // 2 for length in size)
        return small[:, :, top:top + side, left:left + side]


def _tuple(values: Optional[Sequence[float]]) -> Values:
    return None if values is None else tuple(float(v) for v in values)


def _same(mine: Any, found: Any) -> bool:
    """Whether settings agree, numbers up to float32's rounding."""
    if isinstance(mine, str):
        return mine == found
    return len(mine) == len(found) and all(
        math.isclose(a, b, rel_tol=1e-5) for a, b in zip(mine, found))


def _device(encoder: CLIPEncoder) -> torch.device:
    return next(encoder.network.parameters()).device
