# SPDX-License-Identifier: Apache-2.0
"""Small autoencoders as functions of their weights."""
from __future__ import annotations

import math
from abc import ABCMeta, abstractmethod
from typing import Dict, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

# Shape legend: N images, D values of an image, G groups of values,
# C channels, H x W pixels

Weights = Dict[str, Tensor]


class Autoencoder(metaclass=ABCMeta):
    """Maps images to themselves through a narrow code.

    Args:
        groups (int): The D values fall into so many runs of equal length,
            each of which has one mean and one deviation.
    """

    def __init__(self, groups: int) -> None:
        self.groups = groups

    @abstractmethod
    def shapes(self) -> Dict[str, Tuple[int, ...]]:
        """Shape of each weight by its name."""

    @abstractmethod
    def __call__(self, weights: Weights, x: Tensor) -> Tensor:
        """Reconstruct (N, D) values in (0, 1); returns (N, D) of those."""

    def draw(self, generator: torch.Generator) -> Weights:
        """Weights to begin with: He et al. (ICCV 2015), biases zero."""
        weights = {}
        for name, shape in self.shapes().items():
            bound = 0.0
            if name.endswith('weight'):
                bound = (6 / math.prod(shape[1:]))**0.5
            weights[name] = bound * (
                2 * torch.rand(shape, generator=generator) - 1)
        return weights


class LinearAutoencoder(Autoencoder):
    """``sigmoid(V relu(U x + a) + b)``.

    Args:
        size (int): D.
        hidden (int): Units of the code.
    """

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__(groups=size)
        self._size = size
        self._hidden = hidden

    def shapes(self) -> Dict[str, Tuple[int, ...]]:
        """See :meth:`Autoencoder.shapes`."""
        return {
            'encoder.weight': (self._hidden, self._size),
            'encoder.bias': (self._hidden, ),
            'decoder.weight': (self._size, self._hidden),
            'decoder.bias': (self._size, )
        }

    def __call__(self, weights: Weights, x: Tensor) -> Tensor:
        """See :meth:`Autoencoder.__call__`."""
        code = F.linear(x, weights['encoder.weight'], weights['encoder.bias'])
        return F.linear(code.relu(), weights['decoder.weight'],
                        weights['decoder.bias']).sigmoid()


class ConvAutoencoder(Autoencoder):
    """Convolutions of stride 2 down to a code, and their mirror back up.

    Kernels are 3x3 on the way down and 4x4, transposed, on the way up, with
    a linear layer to the code and one from it in the middle: without these,
    the autoencoder of a varied domain copies the texture of any other. ReLU
    in between, a sigmoid at the end.

    Args:
        image_shape (tuple[int]): C, H, W; sides divisible by
            ``2 ** len(channels)``.
        channels (tuple[int]): Of each step down.
        hidden (int): Units of the code.
    """

    def __init__(self, image_shape: Tuple[int, int, int],
                 channels: Tuple[int, ...], hidden: int) -> None:
        super().__init__(groups=image_shape[0])
        self._image_shape = image_shape
        self._path = (image_shape[0], *channels)
        height, width = (side >> len(channels) for side in image_shape[1:])
        self._grid = (channels[-1], height, width)
        self._hidden = hidden

    def shapes(self) -> Dict[str, Tuple[int, ...]]:
        """See :meth:`Autoencoder.shapes`."""
        shapes: Dict[str, Tuple[int, ...]] = {}
        for step, (outer, inner) in enumerate(zip(self._path, self._path[1:])):
            shapes[f'down.{step}.weight'] = (inner, outer, 3, 3)
            shapes[f'down.{step}.bias'] = (inner, )
            shapes[f'up.{step}.weight'] = (inner, outer, 4, 4)
            shapes[f'up.{step}.bias'] = (outer, )
        size = math.prod(self._grid)
        shapes['encoder.weight'] = (self._hidden, size)
        shapes['encoder.bias'] = (self._hidden, )
        shapes['decoder.weight'] = (size, self._hidden)
        shapes['decoder.bias'] = (size, )
        return shapes

    def __call__(self, weights: Weights, x: Tensor) -> Tensor:
        """See :meth:`Autoencoder.__call__`."""
        steps = range(len(self._path) - 1)
        y = x.view(len(x), *self._image_shape)
        for step in steps:
            y = F.conv2d(
                y,
                weights[f'down.{step}.weight'],
                weights[f'down.{step}.bias'],
                stride=2,
                padding=1).relu()
        for layer in ('encoder', 'decoder'):
            y = F.linear(
                y.flatten(1), weights[f'{layer}.weight'],
                weights[f'{layer}.bias']).relu()
        y = y.view(len(x), *self._grid)
        for step in reversed(steps):
            y = F.conv_transpose2d(
                y,
                weights[f'up.{step}.weight'],
                weights[f'up.{step}.bias'],
                stride=2,
                padding=1)
            y = y.relu() if step else y.sigmoid()
        return y.flatten(1)
