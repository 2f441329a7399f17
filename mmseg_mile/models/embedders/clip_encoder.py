# SPDX-License-Identifier: Apache-2.0
"""CLIP's image encoder, from one of the libraries that have it."""
from __future__ import annotations

import importlib.util
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Sequence, Tuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

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
