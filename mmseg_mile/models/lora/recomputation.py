# SPDX-License-Identifier: Apache-2.0
"""Activation functions whose output an adapted layer need not keep.

GELU keeps its input for backward, and the adapted layer behind it keeps the
same map once more, as its own input. Half of that is enough: the layer can
keep what GELU keeps, and compute GELU again when it needs its input.

Which map a layer was given is not read off the structure of the network: the
tensor itself says whose output it is. So a layer that is given anything else
(a sum, a copy, what a dropout left over) keeps its input as ever, and nobody
else who uses the map notices.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Callable, Optional

import torch
from torch import Tensor, nn

_MARK = 'mile_recomputation'


@dataclass(frozen=True)
class Recomputation:
    """How to compute a map again: ``activation(source)``.

    Args:
        activation (Callable): Works on each element by itself.
        source (Tensor): Its input, of the shape of the map.
        version (int): Of the map; another one tells that it was written to.
    """
    activation: Callable[[Tensor], Tensor]
    source: Tensor
    version: int

    def rearranged(
            self, layout: Callable[[Tensor],
                                   Tensor]) -> Optional['Recomputation']:
        """The same for the map in another layout.

        Args:
            layout (Callable): Moves elements, and computes nothing.

        Returns:
            Recomputation | None: None if ``layout`` copies, so that keeping
            the source costs what keeping the map does.
        """
        source = layout(self.source)
        if not _share_memory(source, self.source):
            return None
        return replace(self, source=source)


class RecomputedActivation(nn.Module):
    """An activation function whose output tells how it was made.

    Args:
        activation (nn.Module): See :func:`can_recompute`.
    """

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation
        self.train(activation.training)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to a map of any shape."""
        y = self.activation(x)
        # without a gradient the activation keeps nothing that could be shared
        if y.requires_grad:
            setattr(y, _MARK,
                    Recomputation(self.activation, x.detach(), y._version))
        return y


def can_recompute(module: nn.Module) -> bool:
    """Whether a module keeps its input, and could spare others its output.

    ReLU, for one, keeps its output.
    """
    return type(module).forward is nn.GELU.forward


def recomputation_of(x: Tensor) -> Optional[Recomputation]:
    """How to compute ``x`` again; None if that is not known.

    Args:
        x (Tensor): If it is the very tensor that a
            :class:`RecomputedActivation` gave, and was not changed since.
    """
    found: Any = getattr(x, _MARK, None)
    if found is None or not torch.is_grad_enabled():
        return None
    return found if x._version == found.version else None


def _share_memory(a: Tensor, b: Tensor) -> bool:
    return (a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr())
