# SPDX-License-Identifier: Apache-2.0
"""Layers of a shared convolutional network that each domain owns."""
from __future__ import annotations

import math
from typing import Any, Dict, List, Optional, Set, Tuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmseg.models.backbones.erfnet import NonBottleneck1d
from mmseg.models.utils import InvertedResidual


class ParallelAdapter(nn.Conv2d):
    """A 1x1 convolution beside a chain of convolutions, added to its end.

    ``y = last(...first(x)) + P x``, before the norm layer behind. It begins
    with zeros, which change nothing, and has no bias, which the norm would
    take out.

    Args:
        chain (Sequence[nn.Conv2d]): The convolutions, first to last; it
            becomes the child ``adapter`` of the last.
    """

    def __init__(self, chain: List[nn.Conv2d]) -> None:
        first, last = chain[0], chain[-1]
        super().__init__(
            first.in_channels,
            last.out_channels,
            kernel_size=1,
            groups=first.groups if len(chain) == 1 else 1,
            bias=False)
        nn.init.zeros_(self.weight)
        self.to(last.weight)
        self.steps = [
            math.prod(conv.stride[axis] for conv in chain) for axis in (0, 1)
        ]
        self._seen: Optional[Tensor] = None
        first.register_forward_pre_hook(self._see)
        last.register_forward_hook(self._add)
        last.add_module('adapter', self)

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, C, H, W) to (n, C', H / stride, W / stride), rounded up."""
        # a stride of the convolution's own is the same, but in torch 2.13 its
        # gradient crashes on CPUs for few channels that are laid out last
        down, right = self.steps
        return super().forward(inputs[:, :, ::down, ::right])

    def _see(self, module: nn.Module, args: Tuple[Tensor, ...]) -> None:
        self._seen = args[0]

    def _add(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        seen, self._seen = self._seen, None
        return output + self(seen)


def adapted_chains(backbone: nn.Module) -> Dict[str, List[nn.Conv2d]]:
    """Convolutions that get a parallel adapter, by the last one's name.

    - ERFNet's pair of a 3x1 and a 1x3 convolution gets one, as in MDIL;
    - the three convolutions of an inverted residual block (MobileNetV2),
      which are one convolution taken apart in another way, get one;
    - every other convolution larger than 1x1 gets one of its own, in as
      many groups.

    Only where padding keeps the size up to the stride, so that both outputs
    have one shape.

    Args:
        backbone (nn.Module): Without adapters.

    Returns:
        dict[str, list[nn.Conv2d]]: From first to last.
    """
    names = {module: name for name, module in backbone.named_modules()}
    chains: Dict[str, List[nn.Conv2d]] = {}
    inside: Set[nn.Module] = set()
    # a block comes before what it consists of
    for module in backbone.modules():
        for chain in _chains_of(module):
            if not inside.intersection(chain) and all(map(_fits, chain)):
                chains[names[chain[-1]]] = chain
            inside.update(chain)
    return chains


def add_adapters(backbone: nn.Module) -> None:
    """Give every chain of :func:`adapted_chains` its adapter."""
    for chain in adapted_chains(backbone).values():
        ParallelAdapter(chain)


def owned_by_domains(backbone: nn.Module) -> Set[str]:
    """Names of parameters and buffers of norm layers and adapters."""
    return {
        f'{prefix}.{name}'
        for prefix, module in backbone.named_modules()
        if isinstance(module, (_BatchNorm, ParallelAdapter))
        for name in module.state_dict()
    }


def check_adaptable(backbone: nn.Module) -> None:
    """Refuse a backbone without anything that a domain could own.

    Args:
        backbone (nn.Module): Without adapters.

    Raises:
        ValueError: If it has no batch norm, no convolution to adapt, or
            computes activations again in backward, when they would be those
            of another domain.
    """
    kind = type(backbone).__name__
    modules = list(backbone.modules())
    if not any(isinstance(module, _BatchNorm) for module in modules):
        raise ValueError(
            f'model.backbone {kind} has no batch norm that each domain could '
            'own: use a convolutional backbone with norm_cfg of type BN, such '
            'as ResNetV1c or MobileNetV2.')
    if not adapted_chains(backbone):
        raise ValueError(
            f'model.backbone {kind} has no convolution larger than 1x1 that '
            'keeps its size by padding, so no place for an adapter: use '
            'ResNetV1c, MobileNetV2 or ERFNet.')
    if any(getattr(module, 'with_cp', False) for module in modules):
        raise ValueError(
            f'model.backbone {kind} has with_cp=True, and would compute '
            'again with the layers of another domain: set with_cp=False.')


@torch.no_grad()
def copied(values: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Tensors that no longer change, in the memory layout that they have."""
    return {name: value.detach().clone() for name, value in values.items()}


def _chains_of(module: nn.Module) -> List[List[nn.Conv2d]]:
    """Chains that a module alone tells of."""
    if isinstance(module, InvertedResidual):
        return [_convolutions(module.conv)]
    if isinstance(module, NonBottleneck1d):
        convs = _convolutions(module.convs_layers)
        return [list(pair) for pair in zip(convs[::2], convs[1::2])]
    if isinstance(module, nn.Conv2d) and math.prod(module.kernel_size) > 1:
        return [[module]]
    return []


def _convolutions(module: nn.Module) -> List[nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


def _fits(conv: nn.Conv2d) -> bool:
    """Whether the output has the size of the input, divided by the stride."""
    if isinstance(conv.padding, str):
        return conv.padding == 'same'
    return all(2 * pad == reach * (size - 1) for pad, reach, size in zip(
        conv.padding, conv.dilation, conv.kernel_size))
