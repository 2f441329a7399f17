# SPDX-License-Identifier: Apache-2.0
"""What a weight is multiplied with in training: ``W x``, ``W^T g``, ``g x^T``.

One class per layout of the activations, so that the arithmetic of a low-rank
update (``low_rank_function.py``) is written once. ``W`` is dense (a layer's
weight, or the way down into the adapter); ``up`` is the pointwise way up.
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Optional, Tuple

import torch
from torch import Size, Tensor
from torch.nn import functional as F
from torch.nn import grad

from .frozen_convolution import convolution_input_gradient

# Shape legend: N rows, B images, L positions, I inputs, O outputs, R rank


class WeightProducts(ABC):
    """Products of a weight with activations and with gradients."""

    @abstractmethod
    def apply(self, weight: Tensor, x: Tensor,
              bias: Optional[Tensor]) -> Tensor:
        """``W x + b``."""

    @abstractmethod
    def input_gradient(self, weight: Tensor, grad_output: Tensor,
                       shape: Size) -> Tensor:
        """``W^T g`` in the ``shape`` of the input."""

    @abstractmethod
    def add_input_gradient_(self, total: Tensor, weight: Tensor,
                            grad_output: Tensor) -> Tensor:
        """Add ``W^T g`` to ``total`` in place."""

    @abstractmethod
    def weight_gradient(self, grad_output: Tensor, x: Tensor,
                        shape: Size) -> Tensor:
        """``g x^T`` in the ``shape`` of the weight."""

    @abstractmethod
    def add_up_(self, y: Tensor, up: Tensor, u: Tensor,
                scale: float) -> Tensor:
        """Add ``scale * B u`` to ``y`` in place."""

    @abstractmethod
    def up_input_gradient(self, up: Tensor, grad_output: Tensor) -> Tensor:
        """``B^T g``: the gradient of the low-rank features."""

    @abstractmethod
    def up_gradient(self, grad_output: Tensor, u: Tensor) -> Tensor:
        """``g u^T`` (O, R)."""


class RowProducts(WeightProducts):
    """Activations (N, I), weight (O, I): linear layers, channels-last maps."""

    def apply(self, weight: Tensor, x: Tensor,
              bias: Optional[Tensor]) -> Tensor:
        """``x W^T + b`` (N, O)."""
        return F.linear(x, weight, bias)

    def input_gradient(self, weight: Tensor, grad_output: Tensor,
                       shape: Size) -> Tensor:
        """``g W`` (N, I)."""
        return grad_output @ weight

    def add_input_gradient_(self, total: Tensor, weight: Tensor,
                            grad_output: Tensor) -> Tensor:
        """Add ``g W`` to (N, I)."""
        return total.addmm_(grad_output, weight)

    def weight_gradient(self, grad_output: Tensor, x: Tensor,
                        shape: Size) -> Tensor:
        """``g^T x`` (O, I)."""
        return grad_output.t() @ x

    def add_up_(self, y: Tensor, up: Tensor, u: Tensor,
                scale: float) -> Tensor:
        """Add ``scale * u B^T`` to (N, O)."""
        return y.addmm_(u, up.t(), alpha=scale)

    def up_input_gradient(self, up: Tensor, grad_output: Tensor) -> Tensor:
        """``g B`` (N, R)."""
        return grad_output @ up

    def up_gradient(self, grad_output: Tensor, u: Tensor) -> Tensor:
        """``g^T u`` (O, R)."""
        # CPU kernels are up to 2x faster with the short side first
        return (u.t() @ grad_output).t()


class ColumnProducts(WeightProducts):
    """Activations (B, I, L), weight (O, I): pointwise convolutions."""

    def apply(self, weight: Tensor, x: Tensor,
              bias: Optional[Tensor]) -> Tensor:
        """``W x + b`` (B, O, L)."""
        if bias is None:
            return _over_batch(weight, x) @ x
        return torch.baddbmm(bias[:, None], _over_batch(weight, x), x)

    def input_gradient(self, weight: Tensor, grad_output: Tensor,
                       shape: Size) -> Tensor:
        """``W^T g`` (B, I, L)."""
        return _over_batch(weight.t(), grad_output) @ grad_output

    def add_input_gradient_(self, total: Tensor, weight: Tensor,
                            grad_output: Tensor) -> Tensor:
        """Add ``W^T g`` to (B, I, L)."""
        return total.baddbmm_(
            _over_batch(weight.t(), grad_output), grad_output)

    def weight_gradient(self, grad_output: Tensor, x: Tensor,
                        shape: Size) -> Tensor:
        """``sum_b g_b x_b^T`` (O, I)."""
        return (grad_output @ x.mT).sum(0)

    def add_up_(self, y: Tensor, up: Tensor, u: Tensor,
                scale: float) -> Tensor:
        """Add ``scale * B u`` to (B, O, L)."""
        return y.baddbmm_(_over_batch(up, u), u, alpha=scale)

    def up_input_gradient(self, up: Tensor, grad_output: Tensor) -> Tensor:
        """``B^T g`` (B, R, L)."""
        return self.input_gradient(up, grad_output, grad_output.shape)

    def up_gradient(self, grad_output: Tensor, u: Tensor) -> Tensor:
        """``sum_b g_b u_b^T`` (O, R)."""
        # CPU kernels are up to 2x faster with the short side first
        return (u @ grad_output.mT).sum(0).t()


@dataclass(frozen=True)
class ConvolutionProducts(WeightProducts):
    """Activations (B, I, H, W), weight (O, I, K, K), zero padding.

    Args:
        stride (tuple[int, int]): Of the convolution.
        padding (tuple[int, int]): Zeros on each side.
        dilation (tuple[int, int]): Of the kernel.
    """
    stride: Tuple[int, int]
    padding: Tuple[int, int]
    dilation: Tuple[int, int]

    def apply(self, weight: Tensor, x: Tensor,
              bias: Optional[Tensor]) -> Tensor:
        """Convolve: (B, O, H', W')."""
        return F.conv2d(x, weight, bias, self.stride, self.padding,
                        self.dilation)

    def input_gradient(self, weight: Tensor, grad_output: Tensor,
                       shape: Size) -> Tensor:
        """The transposed convolution (B, I, H, W)."""
        return convolution_input_gradient(grad_output, weight, shape,
                                          self.stride, self.padding,
                                          self.dilation)

    def add_input_gradient_(self, total: Tensor, weight: Tensor,
                            grad_output: Tensor) -> Tensor:
        """Add the transposed convolution to (B, I, H, W)."""
        return total.add_(
            self.input_gradient(weight, grad_output, total.shape))

    def weight_gradient(self, grad_output: Tensor, x: Tensor,
                        shape: Size) -> Tensor:
        """Correlate gradient and input: (O, I, K, K)."""
        return grad.conv2d_weight(x, shape, grad_output, self.stride,
                                  self.padding, self.dilation)

    def add_up_(self, y: Tensor, up: Tensor, u: Tensor,
                scale: float) -> Tensor:
        """Add ``scale * B u`` to (B, O, H', W')."""
        # view, not flatten: a copy would take the sum to the wrong place
        _COLUMNS.add_up_(
            y.view(*y.shape[:2], -1), up.flatten(1), u.flatten(2), scale)
        return y

    def up_input_gradient(self, up: Tensor, grad_output: Tensor) -> Tensor:
        """``B^T g`` (B, R, H', W')."""
        columns = _COLUMNS.up_input_gradient(
            up.flatten(1), grad_output.flatten(2))
        return columns.unflatten(2, grad_output.shape[2:])

    def up_gradient(self, grad_output: Tensor, u: Tensor) -> Tensor:
        """``g u^T`` (O, R)."""
        return _COLUMNS.up_gradient(grad_output.flatten(2), u.flatten(2))


_COLUMNS = ColumnProducts()


def _over_batch(weight: Tensor, x: Tensor) -> Tensor:
    """The weight once per image, without a copy."""
    return weight.expand(x.shape[0], -1, -1)
