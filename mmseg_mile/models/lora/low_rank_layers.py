# SPDX-License-Identifier: Apache-2.0
"""Layers that add another expert's low-rank term to each part of a batch."""
from __future__ import annotations

from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

# Shape legend: B images, n rows per image, O outputs, I inputs, R rank


class LowRankTerm(NamedTuple):
    """``scale * up(down(x))`` of one layer.

    Args:
        down (Tensor): A, (R, I) or (R, I, K, K).
        up (Tensor): B, (O, R) or (O, R, 1, 1).
        scale (float): Factor of the product.
    """
    down: Tensor
    up: Tensor
    scale: float


class Part(NamedTuple):
    """Consecutive images of a batch that share their experts.

    Args:
        start (int): First image.
        stop (int): One after the last image.
        terms (dict[str, LowRankTerm]): By layer.
        norm (dict[str, dict[str, Tensor]]): Tensors that replace the base's,
            by norm layer and their names in it.
    """
    start: int
    stop: int
    terms: Dict[str, LowRankTerm]
    norm: Dict[str, Dict[str, Tensor]]


class _PartedLayer(nn.Module):
    """A layer of the base that treats each part of the batch in its way."""

    def __init__(self, name: str, base: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.base = base
        self.parts: List[Part] = []

    def rows(self, x: Tensor) -> Iterator[Tuple[slice, Part]]:
        """The rows of each part; windows of an image lie side by side."""
        per_image = len(x) // self.parts[-1].stop
        for part in self.parts:
            yield slice(part.start * per_image, part.stop * per_image), part


class LowRankLinear(_PartedLayer):
    """``W x + b`` of the base, plus ``s B A x`` of each part's experts."""

    def forward(self, x: Tensor) -> Tensor:
        """(B n, ..., I) -> (B n, ..., O)."""
        out = self.base(x).contiguous()
        for rows, part in self.rows(x):
            term = part.terms.get(self.name)
            if term is not None:
                low = x[rows].flatten(0, -2) @ term.down.T.to(x.dtype)
                flat = out[rows].view(-1, out.shape[-1])
                flat.addmm_(
                    low.to(flat.dtype),
                    term.up.T.to(flat.dtype),
                    alpha=term.scale)
        return out


class LowRankConv2d(_PartedLayer):
    """``W * x + b`` of the base, plus ``s B (A * x)`` of the experts."""

    base: nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        """(B n, I, H, W) -> (B n, O, H', W')."""
        out = self.base(x)
        for rows, part in self.rows(x):
            term = part.terms.get(self.name)
            if term is not None:
                low = self._convolved(x[rows], term.down)
                out[rows].add_(
                    torch.nn.functional.conv2d(low, term.up), alpha=term.scale)
        return out

    def _convolved(self, x: Tensor, weight: Tensor) -> Tensor:
        """As the base's own forward, which may pad, with another weight."""
        own: Any = self.base._parameters
        held = dict(own)
        own.update(weight=weight, bias=None)
        try:
            return self.base(x)
        finally:
            own.update(held)


class PartedNorm(_PartedLayer):
    """A norm layer in eval mode, with each part's own tensors."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B n, C, ...) rows with their experts' tensors."""
        if not any(self.name in part.norm for part in self.parts):
            return self.base(x)
        if isinstance(self.base, _BatchNorm) and self.base.track_running_stats:
            return self._affine(x)
        return torch.cat([
            functional_call(self.base, part.norm.get(self.name, {}),
                            (x[rows], )) for rows, part in self.rows(x)
        ])

    def _affine(self, x: Tensor) -> Tensor:
        """Batch norm in eval mode is one factor and shift per channel."""
        scales, shifts = [], []
        for rows, part in self.rows(x):
            own = part.norm.get(self.name, {})
            weight, bias, mean, variance = (
                own.get(leaf, getattr(self.base, leaf))
                for leaf in ('weight', 'bias', 'running_mean', 'running_var'))
            scale = torch.rsqrt(variance + self.base.eps)
            scale = scale if weight is None else scale * weight
            shift = -mean * scale
            shift = shift if bias is None else shift + bias
            scales.append(scale.expand(rows.stop - rows.start, -1))
            shifts.append(shift.expand(rows.stop - rows.start, -1))
        shape = (len(x), x.shape[1], *[1] * (x.dim() - 2))
        out = torch.addcmul(
            torch.cat(shifts).view(shape), x,
            torch.cat(scales).view(shape))
        return out.to(x.dtype)
