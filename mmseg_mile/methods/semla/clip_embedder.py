# SPDX-License-Identifier: Apache-2.0
"""What an image looks like to CLIP."""
from __future__ import annotations

import importlib.util
import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Sequence, Tuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmseg.registry import TASK_UTILS

# What OpenAI's CLIP was trained with; in units of pixels from 0 to 1.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_PACKAGES = dict(transformers='transformers', open_clip='open_clip_torch')
# open_clip's errors list all that it knows.
_REASON = 200
_KINDS = ('clip', 'clip_vision_model')


@dataclass(eq=False)
class CLIPEncoder:
    """A frozen network, and the images that it wants.

    Args:
        network (nn.Module): In eval mode, without gradients.
        encode (Callable): (B, 3, side, side) normalised images to (B, D)
            projected features, not normalised.
        side (int): Height and width of its images.
        mean (Sequence[float]): Of its pixels, which go from 0 to 1.
        std (Sequence[float]): Of its pixels.
    """
    network: nn.Module
    encode: Callable[[Tensor], Tensor]
    side: int
    mean: Sequence[float]
    std: Sequence[float]


@dataclass(frozen=True)
class CLIPSource:
    """Where an encoder comes from.

    Args:
        library (str): 'transformers' or 'open_clip'.
        model (str): A folder, or a name that the library knows.
        pretrained (str, optional): Weights of an open_clip architecture, a
            tag or a file.

    Raises:
        ValueError: If the library is not installed, or the fields cannot
            belong to weights.
    """
    library: str
    model: str
    pretrained: Optional[str] = None

    def __post_init__(self) -> None:
        if self.library not in _PACKAGES:
            raise ValueError(
                f'embedder.library must be one of {sorted(_PACKAGES)}, got '
                f'{self.library!r}')
        if importlib.util.find_spec(self.library) is None:
            raise ValueError(
                f'embedder.library={self.library!r} is not installed: pip '
                f'install {_PACKAGES[self.library]}, or use the other of '
                f'{sorted(_PACKAGES)}')
        self._check_weights()
        self._check_folder()

    def _check_weights(self) -> None:
        """An architecture alone would get random weights."""
        self_contained = self.library == 'transformers' or ':' in self.model
        if self_contained and self.pretrained is not None:
            raise ValueError(
                f'embedder.pretrained={self.pretrained!r} does not go with '
                f'embedder.model={self.model!r}, which names weights itself: '
                'leave it out')
        if not self_contained and self.pretrained is None:
            raise ValueError(
                f'embedder.model={self.model!r} is an architecture of '
                'open_clip: name its weights in embedder.pretrained, a tag '
                "such as 'openai' or a file, or give a model "
                "'hf-hub:OWNER/NAME' or 'local-dir:FOLDER'")

    def _check_folder(self) -> None:
        path = self.model.partition('local-dir:')[2] or self.model
        looks_like = path != self.model or path.startswith(('/', '.', '~'))
        if Path(path).is_file() or (looks_like and not Path(path).is_dir()):
            raise ValueError(
                f'embedder.model={self.model!r} is no folder: give the '
                'folder that holds the config and the weights, or a name on '
                'the Hugging Face hub')

    def load(self, device: torch.device) -> CLIPEncoder:
        """The encoder on a device; one for all who ask while it is in use.

        Raises:
            ValueError: If there are no such weights, or not all of them.
        """
        key = (self, device)
        encoder = _LOADED.get(key)
        if encoder is None:
            read = dict(transformers=_transformers, open_clip=_open_clip)
            encoder = read[self.library](self)
            encoder.network.float().eval().requires_grad_(False).to(device)
            _LOADED[key] = encoder
        return encoder

    def refusal(self, error: object) -> ValueError:
        """The error to raise when the library cannot load it."""
        what = f'embedder.model={self.model!r}'
        if self.pretrained is not None:
            what += f', embedder.pretrained={self.pretrained!r}'
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = textwrap.shorten(lines[0], _REASON, placeholder=' ...')
        return ValueError(
            f'{what}: {self.library} cannot load it ({reason}). Download '
            'the weights where there is a network and give their folder, or '
            'correct the name')


_LOADED: 'WeakValueDictionary[Tuple[CLIPSource, torch.device], CLIPEncoder]'
_LOADED = WeakValueDictionary()


def _transformers(source: CLIPSource) -> CLIPEncoder:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
    try:
        config, _ = CLIPVisionConfig.get_config_dict(source.model)
        # without one, transformers fills in another network's
        kind = config.get('model_type')
        if kind not in _KINDS:
            raise ValueError(f'its config.json has model_type {kind!r}, not '
                             f'one of {_KINDS}')
        network, report = CLIPVisionModelWithProjection.from_pretrained(
            source.model, output_loading_info=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise source.refusal(error) from error
    missing = sorted(report['missing_keys'])
    if missing:
        # it would go on with random values
        raise source.refusal(f'the file lacks {missing[:3]}')
    settings = _processor_settings(source.model)
    return CLIPEncoder(network, lambda x: network(pixel_values=x).image_embeds,
                       network.config.image_size,
                       settings.get('image_mean', _MEAN),
                       settings.get('image_std', _STD))


def _processor_settings(model: str) -> Dict[str, Any]:
    """What stands beside the weights, for checkpoints that differ."""
    from transformers.image_processing_base import ImageProcessingMixin
    try:
        return ImageProcessingMixin.get_image_processor_dict(model)[0]
    except OSError:
        return {}


def _open_clip(source: CLIPSource) -> CLIPEncoder:
    import open_clip
    try:
        network = open_clip.create_model(
            source.model,
            pretrained=source.pretrained,
            pretrained_text=False,
            require_pretrained=True)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise source.refusal(error) from error
    # the text encoder is not asked, and may be as large
    visual = network.visual
    settings = dict(visual.preprocess_cfg)
    size = settings['size']
    side = size if isinstance(size, int) else size[0]
    return CLIPEncoder(visual, visual, side, settings.get('mean', _MEAN),
                       settings.get('std', _STD))


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
    normalisation, that must be undone: :meth:`bind_preprocessor` takes the numbers
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

    def bind_preprocessor(self, preprocessor: nn.Module) -> None:
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
