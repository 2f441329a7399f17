# SPDX-License-Identifier: Apache-2.0
"""The ways to run a frozen backbone with experts."""
from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from mmseg_mile.structures import Routing
from ..lora import AdapterLibrary, LowRankPass, TensorSlots
from .early_stages import EarlyStages

# Pixels per forward on a CPU: features of more than a 512x512 image leave the
# caches, and a batch of them takes longer than its images one by one.
_CPU_PIXELS = 1 << 18
EXECUTORS = ('auto', 'merged', 'low_rank')
Active = Union[Mapping[str, float], Routing]
Group = Tuple[Dict[str, float], List[int]]


class ExpertForward:
    """Runs a backbone at rest with experts, as a whole or its first stages.

    'merged' forwards the images of one mixture of experts at a time, on a CPU
    few of them at once, with ``W + s B A`` in place of ``W``. 'low_rank'
    forwards a whole batch once and adds ``s B A x`` to each image's rows.
    'auto' is 'merged', which measured faster on a CPU for every network: few
    images stay in the caches, and with an expert they cost what they cost
    without (``tools/benchmark.py predict`` times both). So it is where each
    image mixes 20 experts (``tools/benchmark.py fuse``): merging costs a
    layer as much as forwarding R more positions, R being the sum of the
    ranks, and low-rank terms cost R (I + O) / (I O) of all positions.

    Args:
        backbone (nn.Module): The inner backbone.
        experts (AdapterLibrary): The adapters.
        targets (Sequence[str]): Layers that adapters may hold.
        executor (str): 'auto', 'merged' or 'low_rank'.

    Raises:
        ValueError: If the executor is unknown.
    """

    def __init__(self, backbone: nn.Module, experts: AdapterLibrary,
                 targets: Sequence[str], executor: str) -> None:
        self._backbone = backbone
        self._experts = experts
        self._targets = targets
        self.executor = executor
        self._slots: Optional[TensorSlots] = None
        self._low_rank: Optional[LowRankPass] = None
        self._early: Dict[int, EarlyStages] = {}

    @property
    def executor(self) -> str:
        """str: The way in use; may be set between predictions."""
        return self._executor

    @executor.setter
    def executor(self, executor: str) -> None:
        if executor not in EXECUTORS:
            raise ValueError(f'backbone.executor must be one of {EXECUTORS}, '
                             f'got {executor!r}')
        self._executor = executor

    @property
    def tensors(self) -> TensorSlots:
        """TensorSlots: The backbone's parameters and buffers by name."""
        if self._slots is None:
            self._slots = TensorSlots(self._backbone)
        return self._slots

    def passes(self, groups: List[Group], x: Tensor) -> List[List[Group]]:
        """Which images share a forward.

        Args:
            groups (list[Group]): Images by mixture.
            x (Tensor): (B, C, H, W), for its size and device.

        Returns:
            list[list[Group]]: Per forward, its groups.
        """
        if self._executor == 'low_rank' and len(groups) > 1:
            return [groups]
        most = len(x)
        if x.device.type == 'cpu':
            most = max(1, _CPU_PIXELS // (x.shape[2] * x.shape[3]))
        return [[(mixture, indices[start:start + most])]
                for mixture, indices in groups
                for start in range(0, len(indices), most)]

    def __call__(self, x: Tensor, active: Active) -> Any:
        """Forward images with one mixture for all, or one for each."""
        if isinstance(active, Routing):
            return self.routing(x, active)
        return self.mixture(x, active)

    def mixture(self, x: Tensor, mixture: Mapping[str, float]) -> Any:
        """Forward images that all have one mixture; {} is the base."""
        if not mixture:
            return self._backbone(x)
        merged = self._experts.merged(mixture, self.tensors)
        with self.tensors.holding(merged):
            return self._backbone(x)

    def routing(self, x: Tensor, routing: Routing) -> Any:
        """Forward images that have a mixture each."""
        assert len(routing) == len(x)
        groups = routing.groups()
        outputs: List[Any] = []
        order: List[int] = []
        for joint in self.passes(groups, x):
            indices = sum((i for _, i in joint), [])
            images = x if indices == list(range(len(x))) else x[indices]
            outputs.append(
                self.mixture(images, joint[0][0]) if len(joint) ==
                1 else self._jointly(images, joint))
            order += indices
        return _joined(outputs, order)

    def early(self, x: Tensor, num_outputs: int) -> Any:
        """The base's first outputs, without the stages behind them."""
        if num_outputs not in self._early:
            self._early[num_outputs] = EarlyStages(self._backbone, num_outputs)
        return self._early[num_outputs](x)

    def _jointly(self, x: Tensor, groups: List[Group]) -> Any:
        if self._low_rank is None:
            self._low_rank = LowRankPass(self._backbone, self._targets)
        mixtures = [([(weight, self._experts[name])
                      for name, weight in mixture.items()], len(indices))
                    for mixture, indices in groups]
        return self._low_rank(x, mixtures, self.tensors)


def _joined(outputs: List[Any], order: List[int]) -> Any:
    """Outputs of several passes, images back in their order."""
    if len(outputs) == 1 and order == sorted(order):
        return outputs[0]
    back = torch.tensor(order).argsort()
    if isinstance(outputs[0], Tensor):
        return torch.cat(outputs)[back]
    return tuple(torch.cat(level)[back] for level in zip(*outputs))
