# SPDX-License-Identifier: Apache-2.0
"""Task experts of PSS: one convolutional autoencoder of images per task."""
from __future__ import annotations

import math
from typing import Any, Sequence

from torch import Tensor

from mmseg.registry import TASK_UTILS
from .autoencoders import ConvAutoencoder
from .reconstruction_gate import ReconstructionGate


@TASK_UTILS.register_module()
class ConvAutoencoderGate(ReconstructionGate):
    """Gate of Progressive Semantic Segmentation (arXiv 2501.05246).

    One convolutional autoencoder per domain; the least reconstruction error
    picks the model. The paper's network was not at hand: this one is small
    enough to train within seconds on a CPU, on small copies of the images
    (:class:`ThumbnailEmbedder`). It never asks the base.

    Args:
        image_shape (Sequence[int]): Channels, height and width of the
            embedder's copies. Defaults to (3, 48, 64).
        channels (Sequence[int]): Of each convolution of stride 2 on the way
            down. Defaults to (8, 16, 32).
        hidden (int): Units of the code. Defaults to 64.
        num_steps (int): Optimizer steps per task. Defaults to 400.
        batch_size (int): Images per step. Defaults to 16.
        **kwargs: As in :class:`ReconstructionGate`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self,
                 image_shape: Sequence[int] = (3, 48, 64),
                 channels: Sequence[int] = (8, 16, 32),
                 hidden: int = 64,
                 num_steps: int = 400,
                 batch_size: int = 16,
                 **kwargs: Any) -> None:
        super().__init__(num_steps, batch_size, **kwargs)
        for name, values in (('channels', channels), ('hidden', [hidden])):
            if not values or min(values) < 1:
                raise ValueError(f'gate.{name} must be >= 1, got {values}')
        factor = 2**len(channels)
        if len(image_shape) != 3 or min(image_shape) < 1 or any(
                side % factor for side in image_shape[1:]):
            raise ValueError(
                'gate.image_shape must be channels, height and width, both '
                f'sides divisible by 2 ** len(gate.channels) = {factor}, got '
                f'{tuple(image_shape)}')
        num_channels, height, width = image_shape
        self.image_shape = (num_channels, height, width)
        self._network = ConvAutoencoder(self.image_shape, tuple(channels),
                                        hidden)

    def autoencoder(self, size: int) -> ConvAutoencoder:
        """See :meth:`ReconstructionGate.autoencoder`."""
        if size != math.prod(self.image_shape):
            raise ValueError(
                f'gate.image_shape {self.image_shape} has '
                f'{math.prod(self.image_shape)} values, an embedding {size}: '
                "use embedder=dict(type='ThumbnailEmbedder', "
                f'size={self.image_shape[1:]})')
        return self._network

    def _size_of(self, mean: Tensor) -> int:
        return math.prod(self.image_shape)
