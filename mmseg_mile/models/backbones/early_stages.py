# SPDX-License-Identifier: Apache-2.0
"""The first stages of a backbone, without those behind them."""
from __future__ import annotations

import copy
from typing import Any, Iterator, List, Sequence

import torch
from torch import Tensor, nn

from ..lora import probe_images

# What mmseg's backbones step through: a list of modules or names, or a count.
_STEPS = ('layers', 'stages', 'res_layers', 'blocks', 'num_stages')


class EarlyStages:
    """Computes the first outputs of a backbone and stops there.

    mmseg's backbones walk through a list of stages and collect outputs as
    they go. A copy of the backbone with the same modules but a shorter list
    gives the same first outputs; it is accepted if it does so on a probe,
    else every call runs the whole backbone.

    Args:
        backbone (nn.Module): At rest, in eval mode; its modules are shared.
        num_outputs (int): Outputs that are needed.
    """

    def __init__(self, backbone: nn.Module, num_outputs: int) -> None:
        self._num_outputs = num_outputs
        self.network = _shortest(backbone, num_outputs) or backbone

    def __call__(self, x: Tensor) -> List[Tensor]:
        """Outputs of (B, C, H, W) images, the first ``num_outputs``."""
        return list(_outputs(self.network, x)[:self._num_outputs])


def _outputs(network: nn.Module, x: Tensor) -> Sequence[Tensor]:
    outputs: Any = network(x)
    return (outputs, ) if isinstance(outputs, Tensor) else outputs


@torch.no_grad()
def _shortest(backbone: nn.Module, num_outputs: int) -> Any:
    """The shortest cut that gives the same outputs on a probe, or None."""
    probe = probe_images(backbone, 1, side=64)
    wanted = _outputs(backbone, probe)[:num_outputs]
    for network in _cuts(backbone):
        try:
            got = _outputs(network, probe)
        except (IndexError, RuntimeError, ValueError, TypeError):
            continue
        if len(got) >= num_outputs and all(
                torch.equal(a, b) for a, b in zip(got, wanted)):
            return network
    return None


def _cuts(backbone: nn.Module) -> Iterator[nn.Module]:
    """Copies that share all modules and step through fewer of them."""
    for name in _STEPS:
        steps = getattr(backbone, name, None)
        if isinstance(steps, int):
            shorter: Any = range(1, steps)
        elif isinstance(steps, (list, tuple, nn.ModuleList, nn.Sequential)):
            shorter = (steps[:length] for length in range(1, len(steps)))
        else:
            continue
        for cut in shorter:
            network = copy.copy(backbone)
            # the copy of a module still shares its dict of children
            network._modules = dict(backbone._modules)
            setattr(network, name, cut)
            yield network
