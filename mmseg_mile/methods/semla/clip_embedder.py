# SPDX-License-Identifier: Apache-2.0
"""CLIP's embedding of an image, for gates."""
from __future__ import annotations

import importlib.util
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Sequence, Tuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmseg.registry import TASK_UTILS

# Shape legend: B images, C channels, H x W pixels, D embedding

_CROPS = ('center', 'squeeze')
# Pixels of an image file; a little beside it is rounding.
_WHITE = 255.0
_SLACK = 1.0
# What OpenAI's CLIP was trained with; in units of pixels from 0 to 1.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_PACKAGES = dict(transformers='transformers', open_clip='open_clip_torch')
_KINDS = ('clip', 'clip_vision_model')
# open_clip's errors list all that it knows.
_REASON = 200


@TASK_UTILS.register_module()
class CLIPEmbedder:
    """Projected image features of CLIP, not normalised.

    The index of SemLA (Qorbani et al., CVPR 2025, arXiv 2503.21780, public
    code): ``openai/clip-vit-large-patch14``, 768 values. The encoder is
    another frozen network beside the segmentor. It is loaded when the first
    image comes, which is before the first task is trained, and is no part of
    the segmentor's weights nor of its library: who predicts needs it too.

    Images come normalised as for the segmentor, which is undone, so that
    they get CLIP's own normalisation. Images of one channel, such as thermal
    ones, become grey.

    Args:
        model (str): Folder of a saved CLIP, or its name on the Hugging Face
            hub. With ``library='open_clip'``: an architecture, or
            'hf-hub:OWNER/NAME' or 'local-dir:FOLDER'.
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
                 crop: str = 'center',
                 library: str = 'transformers',
                 pretrained: Optional[str] = None) -> None:
        if crop not in _CROPS:
            raise ValueError(f'embedder.crop must be one of {_CROPS}, got '
                             f'{crop!r}')
        check_source(library, model, pretrained)
        self.source = (library, model, pretrained)
        self.crop = crop
        self._mean: Sequence[float] = ()
        self._std: Sequence[float] = ()
        self._is_bgr = False
        self._encoder: Optional[CLIPEncoder] = None

    def __getstate__(self) -> Dict[str, Any]:
        """Without the network, which a copy finds or loads again."""
        return dict(self.__dict__, _encoder=None)

    def bind_preprocessor(self, preprocessor: nn.Module) -> None:
        """Learn how the images of a segmentor are normalised.

        Args:
            preprocessor (SegDataPreProcessor): Of the segmentor.
        """
        found: Any = preprocessor
        self._mean, self._std = (0.0, ), (1.0, )
        if getattr(found, '_enable_normalize', False):
            self._mean = tuple(found.mean.flatten().tolist())
            self._std = tuple(found.std.flatten().tolist())
        # mmcv's loader gives blue first
        self._is_bgr = not getattr(found, '_channel_conversion', False)

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
            ValueError: If the weights cannot be loaded, or the images have
                other channels, or pixels that are not from 0 to 255.
        """
        if self._encoder is None or self._encoder.device != images.device:
            self._encoder = load_encoder(self.source, images.device)
        encoder = self._encoder
        pixels = self._resized(self._pixels(images) / _WHITE, encoder.side)
        mean, std = (
            pixels.new_tensor(v)[:, None, None]
            for v in (encoder.mean, encoder.std))
        # an embedding must not depend on the precision of predictions
        with torch.autocast(images.device.type, enabled=False):
            return encoder.encode((pixels - mean) / std).float()

    def _pixels(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) red, green and blue from 0 to 255."""
        assert self._std, 'bind_preprocessor comes first'
        channels = images.shape[1]
        if channels not in (1, 3):
            raise ValueError(
                f'CLIPEmbedder sees images of 1 or 3 channels, got '
                f'{channels}: use FeatureStatisticsEmbedder for this sensor')
        mean, std = (
            images.new_tensor(v, dtype=torch.float32)[:, None, None]
            for v in (self._mean, self._std))
        pixels = images.float() * std + mean
        low, high = (float(v) for v in pixels.aminmax())
        if not -_SLACK <= low <= high <= _WHITE + _SLACK:
            raise ValueError(
                'CLIPEmbedder sees pixels from 0 to 255, got '
                f'{low:.1f} to {high:.1f} without the normalisation of '
                'model.data_preprocessor: scale them in the pipeline, or use '
                'FeatureStatisticsEmbedder')
        if channels == 3 and self._is_bgr:
            pixels = pixels.flip(1)
        return pixels.expand(-1, 3, -1, -1)

    def _resized(self, pixels: Tensor, side: int) -> Tensor:
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

    @property
    def device(self) -> torch.device:
        """torch.device: Where the weights lie."""
        return next(self.network.parameters()).device


Source = Tuple[str, str, Optional[str]]
# One encoder for all embedders, and as long as one of them is in use.
_ENCODERS: 'WeakValueDictionary[Tuple[Source, torch.device], CLIPEncoder]'
_ENCODERS = WeakValueDictionary()


def check_source(library: str, model: str, pretrained: Optional[str]) -> None:
    """Refuse what cannot name weights; arguments as in the embedder.

    Raises:
        ValueError: If the library is not installed, an architecture would
            get random weights, or the folder does not exist.
    """
    if library not in _PACKAGES:
        raise ValueError(f'embedder.library must be one of '
                         f'{sorted(_PACKAGES)}, got {library!r}')
    if importlib.util.find_spec(library) is None:
        raise ValueError(
            f'embedder.library={library!r} is not installed: pip install '
            f'{_PACKAGES[library]}, or use the other of {sorted(_PACKAGES)}')
    self_contained = library == 'transformers' or ':' in model
    if self_contained and pretrained is not None:
        raise ValueError(
            f'embedder.pretrained={pretrained!r} does not go with '
            f'embedder.model={model!r}, which names weights itself: leave it '
            'out')
    if not self_contained and pretrained is None:
        raise ValueError(
            f'embedder.model={model!r} is an architecture of open_clip: name '
            "its weights in embedder.pretrained, a tag such as 'openai' or a "
            "file, or give a model 'hf-hub:OWNER/NAME' or 'local-dir:FOLDER'")
    path = model.partition('local-dir:')[2] or model
    is_path = path != model or path.startswith(('/', '.', '~'))
    if Path(path).is_file() or (is_path and not Path(path).is_dir()):
        raise ValueError(
            f'embedder.model={model!r} is no folder: give the folder that '
            'holds the config and the weights, or a name on the Hugging Face '
            'hub')


def load_encoder(source: Source, device: torch.device) -> CLIPEncoder:
    """The encoder on a device; one for all who ask while it is in use.

    Args:
        source (tuple): Library, model and pretrained of the embedder.
        device (torch.device): Where its weights shall lie.

    Raises:
        ValueError: If there are no such weights, or not all of them.
    """
    encoder = _ENCODERS.get((source, device))
    if encoder is None:
        library, model, pretrained = source
        try:
            encoder = (
                _from_transformers(model) if library == 'transformers' else
                _from_open_clip(model, pretrained))
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            reason = textwrap.shorten(lines[0], _REASON, placeholder=' ...')
            weights = f'embedder.model={model!r}'
            if pretrained is not None:
                weights += f', embedder.pretrained={pretrained!r}'
            raise ValueError(
                f'{weights}: {library} cannot load it ({reason}). Download '
                'the weights where there is a network and give their folder, '
                'or correct the name') from error
        encoder.network.float().eval().requires_grad_(False).to(device)
        _ENCODERS[source, device] = encoder
    return encoder


def _from_transformers(model: str) -> CLIPEncoder:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
    from transformers.image_processing_base import ImageProcessingMixin
    config, _ = CLIPVisionConfig.get_config_dict(model)
    # without one, transformers fills in another network's
    kind = config.get('model_type')
    if kind not in _KINDS:
        raise ValueError(f'its config.json has model_type {kind!r}, not one '
                         f'of {_KINDS}')
    network, report = CLIPVisionModelWithProjection.from_pretrained(
        model, output_loading_info=True)
    missing = sorted(report['missing_keys'])
    if missing:
        # it would go on with random values
        raise ValueError(f'the file lacks {missing[:3]}')
    try:
        settings = ImageProcessingMixin.get_image_processor_dict(model)[0]
    except OSError:
        settings = {}
    return CLIPEncoder(network, lambda x: network(pixel_values=x).image_embeds,
                       network.config.image_size,
                       settings.get('image_mean', _MEAN),
                       settings.get('image_std', _STD))


def _from_open_clip(model: str, pretrained: Optional[str]) -> CLIPEncoder:
    import open_clip
    network = open_clip.create_model(
        model,
        pretrained=pretrained,
        pretrained_text=False,
        require_pretrained=True)
    # the text encoder is not asked, and may be as large
    visual = network.visual
    settings = dict(visual.preprocess_cfg)
    size = settings['size']
    side = size if isinstance(size, int) else size[0]
    return CLIPEncoder(visual, visual, side, settings.get('mean', _MEAN),
                       settings.get('std', _STD))
