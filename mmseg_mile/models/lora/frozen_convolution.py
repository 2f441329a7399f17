# SPDX-License-Identifier: Apache-2.0
"""Convolutions without an adapter, which keep nothing for a weight gradient.

torch's convolution keeps its input for backward even where no weight is
trained. In MiT-B2, with a depthwise convolution in each FFN, that is a fifth
of all that is kept.
"""
from __future__ import annotations

from typing import Any, Optional, Sequence, Tuple

import mmcv.cnn
import torch
from torch import Size, Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def convolution_input_gradient(grad_output: Tensor,
                               weight: Tensor,
                               shape: Size,
                               stride: Sequence[int],
                               padding: Sequence[int],
                               dilation: Sequence[int],
                               groups: int = 1) -> Tensor:
    """Gradient of a convolution by its input: the transposed convolution.

    ``torch.nn.grad.conv2d_input`` computes the same, but fills a tensor of
    the input's size first: 5 to 20x slower for a depthwise convolution of
    channels-last activations.

    Args:
        grad_output (Tensor): (B, O, H', W').
        weight (Tensor): (O, I / groups, K, K).
        shape (Size): Of the input, (B, I, H, W).
        stride (Sequence[int]): Of the convolution, as the rest.
        padding (Sequence[int]): Zeros on each side.
        dilation (Sequence[int]): Of the kernel.
        groups (int): Defaults to 1.

    Returns:
        Tensor: (B, I, H, W).
    """
    # rows and columns at the end that a stride left out
    rest = [
        shape[2 + i] - (grad_output.shape[2 + i] - 1) * stride[i] +
        2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1
        for i in (0, 1)
    ]
    return F.conv_transpose2d(grad_output, weight, None, tuple(stride),
                              tuple(padding), rest, groups, tuple(dilation))


class FrozenConv2d(nn.Conv2d):
    """A convolution whose weight and bias are constants.

    Args:
        conv (nn.Conv2d): Its parameters are shared.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        # fields of a built layer are pairs, which torch's hints do not know
        source: Any = conv
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            source.kernel_size,
            source.stride,
            source.padding,
            source.dilation,
            conv.groups,
            bias=conv.bias is not None,
            device='meta')
        self.weight, self.bias = conv.weight, conv.bias
        self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, I, H, W)."""
        kind = x.device.type
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            x, weight = x.to(dtype), weight.to(dtype)
            bias = bias if bias is None else bias.to(dtype)
        return _FrozenConvolution.apply(x, weight, bias, self.stride,
                                        self.padding, self.dilation,
                                        self.groups)


def can_freeze(module: nn.Module) -> bool:
    """Whether :class:`FrozenConv2d` computes what ``module`` does."""
    return (type(module).forward
            in (nn.Conv2d.forward, mmcv.cnn.Conv2d.forward)
            and module.padding_mode == 'zeros'
            and not isinstance(module.padding, str))


class _FrozenConvolution(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Optional[Tensor],
                *geometry: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.geometry = x.shape, geometry
        return F.conv2d(x, weight, bias, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any,
                 grad_output: Tensor) -> Tuple[Optional[Tensor], ...]:
        weight, = ctx.saved_tensors
        by_x = convolution_input_gradient(grad_output, weight, ctx.shape,
                                          *ctx.geometry)
        return (by_x, *[None] * 6)
