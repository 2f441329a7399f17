# SPDX-License-Identifier: Apache-2.0
"""SegFormer's head, mixed at each level's own resolution."""
from __future__ import annotations

from typing import List, Optional, Tuple

import torch
from mmcv.cnn import ConvModule
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from mmseg.models.decode_heads import SegformerHead
from mmseg.models.utils import resize
from mmseg.registry import MODELS

# Shape legend: B images, C channels, h x w grid of a level, H x W the finest


@MODELS.register_module()
class LevelwiseSegformerHead(SegformerHead):
    """mmseg's ``SegformerHead``, the same function for a third of the work.

    The stock head resizes four maps to the finest grid, stacks them and
    mixes the stack: ``W [up(y_1); ...; up(y_4)]``. A 1x1 convolution commutes
    with resizing, so ``sum_i up(W_i y_i)`` is the same map, and all but the
    finest level are mixed where they are small. Arguments, weights and
    state-dict keys are the stock head's; outputs agree up to rounding.

    In eval mode batch norm is folded into the convolution before it.
    """

    def forward(self, inputs: Tuple[Tensor, ...]) -> Tensor:
        """Decode a pyramid of features.

        Args:
            inputs (Sequence[Tensor]): Level i is (B, C_i, h_i, w_i).

        Returns:
            Tensor: (B, num_classes, H, W) logits on the finest grid.
        """
        levels: List[Tensor] = self._transform_inputs(inputs)
        weight, bias = _folded(self.fusion_conv)
        out: Optional[Tensor] = None
        for x, conv, part in zip(levels, self.convs,
                                 weight.split(self.channels, dim=1)):
            # the bias once: resizing maps a constant to itself
            mixed = F.conv2d(
                _conv_norm_act(conv, x), part, bias if out is None else None)
            # in place: a fresh map of this size costs more than the sum
            out = mixed if out is None else out.add_(
                resize(
                    mixed,
                    size=out.shape[2:],
                    mode=self.interpolate_mode,
                    align_corners=self.align_corners))
        assert out is not None
        return self.cls_seg(_norm_act(self.fusion_conv, out))


def _foldable(module: ConvModule) -> bool:
    return (module.with_norm and not module.training
            and isinstance(module.norm, _BatchNorm)
            and module.norm.running_mean is not None)


def _folded(module: ConvModule) -> Tuple[Tensor, Optional[Tensor]]:
    """Weight and bias of the convolution, with its batch norm if it can."""
    weight, bias = module.conv.weight, module.conv.bias
    if not _foldable(module):
        return weight, bias
    norm = module.norm
    scale = torch.rsqrt(norm.running_var + norm.eps)
    shift = -norm.running_mean if bias is None else bias - norm.running_mean
    if norm.affine:
        scale = scale * norm.weight
        return weight * scale[:, None, None, None], shift * scale + norm.bias
    return weight * scale[:, None, None, None], shift * scale


def _norm_act(module: ConvModule, x: Tensor) -> Tensor:
    if module.with_norm and not _foldable(module):
        x = module.norm(x)
    return module.activate(x) if module.with_activation else x


def _conv_norm_act(module: ConvModule, x: Tensor) -> Tensor:
    if not _foldable(module):
        return module(x)
    return _norm_act(module, F.conv2d(x, *_folded(module)))
