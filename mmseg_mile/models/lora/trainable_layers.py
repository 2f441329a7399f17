# SPDX-License-Identifier: Apache-2.0
"""A frozen layer with a trainable adapter, cheaper than a trainable layer."""
from __future__ import annotations

from abc import abstractmethod
from typing import Any, Callable, Dict

import mmcv.cnn
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from .low_rank_function import LowRankFunction, LowRankPlan
from .merging import lora_delta
from .recomputation import recomputation_of
from .weight_products import (ColumnProducts, ConvolutionProducts, RowProducts,
                              WeightProducts)

_ROWS, _COLUMNS = RowProducts(), ColumnProducts()


class TrainableLayer(nn.Module):
    """``(W + s B A) x + b``; only A and B (``lora_A``, ``lora_B``) train.

    Args:
        layer (LoraLayer): PEFT's layer, whose adapter is taken over as PEFT
            initialised it, and whose base layer stays as it is.
        adapter (str): Name of the adapter in it.
    """

    def __init__(self, layer: LoraLayer, adapter: str) -> None:
        super().__init__()
        self.base_layer: Any = layer.get_base_layer()
        self.scaling: float = layer.scaling[adapter]
        self.lora_A: nn.Parameter = layer.lora_A[adapter].weight
        self.lora_B: nn.Parameter = layer.lora_B[adapter].weight
        self.lora_dropout: nn.Module = layer.lora_dropout[adapter]
        self.train(self.base_layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` as the base layer does, adapter included."""
        if self.training and isinstance(self.lora_dropout, nn.Dropout):
            return self._with_dropout(x)
        return self._adapted(x)

    @abstractmethod
    def _adapted(self, x: Tensor) -> Tensor:
        """The output without dropout."""

    def _low_rank(self, x: Tensor, layout: Callable[[Tensor], Tensor],
                  products: WeightProducts, positions: int,
                  pointwise: bool) -> Tensor:
        """The output in the layout of ``products``.

        Args:
            x (Tensor): Activations, as they were given.
            layout (Callable): Brings them into the layout of ``products``.
            products (WeightProducts): For that layout.
            positions (int): Output positions of the whole batch.
            pointwise (bool): Whether ``products`` take (O, I) weights.
        """
        recomputation = recomputation_of(x)
        if recomputation is not None:
            recomputation = recomputation.rearranged(layout)
        weight: Tensor = self.base_layer.weight
        down: Tensor = self.lora_A
        if pointwise:
            weight, down = weight.flatten(1), down.flatten(1)
        plan = LowRankPlan.choose(products, self.scaling, weight,
                                  down.shape[0], positions)
        return LowRankFunction.apply(
            _lowered(layout(x)), weight, self.base_layer.bias, down,
            self.lora_B.flatten(1), plan, recomputation)

    def _with_dropout(self, x: Tensor) -> Tensor:
        """A sees another input than W, so that nothing can be merged."""
        down: Dict[str, Tensor] = {'weight': self.lora_A}
        if self.base_layer.bias is not None:
            down['bias'] = self.lora_A.new_zeros(len(self.lora_A))
        low = functional_call(self.base_layer, down, (self.lora_dropout(x), ))
        up = F.conv2d if self.lora_B.dim() == 4 else F.linear
        return self.base_layer(x) + self.scaling * up(low, self.lora_B)


class TrainableLinear(TrainableLayer):
    """An adapted ``nn.Linear``: (..., I) to (..., O)."""

    def _adapted(self, x: Tensor) -> Tensor:
        positions = x.shape[:-1].numel()
        y = self._low_rank(x, _rows, _ROWS, positions, pointwise=True)
        return y.view(*x.shape[:-1], y.shape[-1])


class TrainablePointwiseConv2d(TrainableLayer):
    """An adapted 1x1 convolution, as a matrix product.

    On a CPU it takes 0.5 to 0.8 of the time of torch's convolution, whose
    gradient by the input costs seven forwards where it has a stride.
    """

    def _adapted(self, x: Tensor) -> Tensor:
        down, right = self.base_layer.stride
        if (down, right) != (1, 1):
            x = x[:, :, ::down, ::right]
        images, _, height, width = x.shape
        positions = images * height * width
        if _is_channels_last(x):
            y = self._low_rank(
                x,
                lambda x: _rows(x.permute(0, 2, 3, 1)),
                _ROWS,
                positions,
                pointwise=True)
            return y.view(images, height, width, -1).permute(0, 3, 1, 2)
        y = self._low_rank(
            x, lambda x: x.flatten(2), _COLUMNS, positions, pointwise=True)
        return y.unflatten(2, (height, width))


class TrainableConv2d(TrainableLayer):
    """An adapted ``nn.Conv2d`` with zero padding and without groups."""

    def __init__(self, layer: LoraLayer, adapter: str) -> None:
        super().__init__(layer, adapter)
        conv = self.base_layer
        self.products = ConvolutionProducts(conv.stride, conv.padding,
                                            conv.dilation)

    def _adapted(self, x: Tensor) -> Tensor:
        down, right = self.base_layer.stride
        positions = len(x) * x.shape[2:].numel() // (down * right)
        return self._low_rank(
            x, lambda x: x, self.products, positions, pointwise=False)


class TrainableMergedLayer(TrainableLayer):
    """Any layer that is linear in its weight: other paddings, subclasses.

    The gradient of the dense weight is computed on the way.
    """

    def _adapted(self, x: Tensor) -> Tensor:
        delta = lora_delta(self.lora_A, self.lora_B)
        merged = self.base_layer.weight + self.scaling * delta
        return functional_call(self.base_layer, {'weight': merged}, (x, ))


def trainable_layer(layer: LoraLayer, adapter: str) -> TrainableLayer:
    """Our layer in place of PEFT's, with the very same parameters.

    Args:
        layer (LoraLayer): Around a linear layer or a convolution.
        adapter (str): Name of the adapter in it.
    """
    base: Any = layer.get_base_layer()
    forward = type(base).forward
    # mmcv's own layers differ for empty tensors only
    if forward in (nn.Linear.forward, mmcv.cnn.Linear.forward):
        return TrainableLinear(layer, adapter)
    if (forward not in (nn.Conv2d.forward, mmcv.cnn.Conv2d.forward)
            or base.padding_mode != 'zeros' or isinstance(base.padding, str)):
        return TrainableMergedLayer(layer, adapter)
    if tuple(base.kernel_size) == (1, 1) and not any(base.padding):
        return TrainablePointwiseConv2d(layer, adapter)
    return TrainableConv2d(layer, adapter)


def _rows(x: Tensor) -> Tensor:
    """From (..., I) to (N, I)."""
    return x.reshape(-1, x.shape[-1])


def _lowered(x: Tensor) -> Tensor:
    """What autocast makes of the operand of a product."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(kind))
    return x


def _is_channels_last(x: Tensor) -> bool:
    return (not x.is_contiguous()
            and x.is_contiguous(memory_format=torch.channels_last))
