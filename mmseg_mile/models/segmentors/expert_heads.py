# SPDX-License-Identifier: Apache-2.0
"""The decode heads of all experts."""
from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Dict, Tuple

import torch
from torch import nn

from mmseg_mile.structures import Expert, Task
from mmseg_mile.structures.expert import TensorDict
from .task_head import build_head


@dataclass
class ExpertHead:
    """Values, config and label space of one head."""
    state: TensorDict
    config: Dict[str, Any]
    classes: Tuple[str, ...]
    palette: Tuple[Tuple[int, ...], ...]


class ExpertHeads:
    """Head tensors per expert, and one module per kind of head.

    Experts whose heads have the same config share a module; handing it one
    expert's tensors takes as long as a head has parameters, not as many
    modules as there are experts.
    """

    def __init__(self) -> None:
        self._heads: Dict[str, ExpertHead] = {}
        self._modules: Dict[str, nn.Module] = {}

    @property
    def names(self) -> Tuple[str, ...]:
        """tuple[str]: Experts in the order in which they were added."""
        return tuple(self._heads)

    def __getitem__(self, name: str) -> ExpertHead:
        if name not in self._heads:
            raise ValueError(
                f'unknown expert {name!r}; experts: {list(self._heads)}')
        return self._heads[name]

    def keep(self, task: Task, head: nn.Module, config: Dict[str,
                                                             Any]) -> None:
        """Copy the values of a trained head."""
        state = {k: v.detach().clone() for k, v in head.state_dict().items()}
        self._heads[task.name] = ExpertHead(state, config, task.classes,
                                            task.palette)

    def add(self, expert: Expert, device: torch.device) -> None:
        """Take over a stored head.

        Raises:
            ValueError: If its tensors do not fit its config, or its classes
                do not match its outputs.
        """
        config = expert.head_config
        if config.get('num_classes') != len(expert.classes):
            raise ValueError(
                f'expert {expert.name!r} names {len(expert.classes)} classes '
                f'but its head has {config.get("num_classes")}: its '
                'expert.json was changed; restore it from a copy.')
        state = {k: v.to(device) for k, v in expert.head.items()}
        self._heads[expert.name] = ExpertHead(state, config, expert.classes,
                                              expert.palette)
        try:
            self.module(expert.name, device)
        except RuntimeError as error:
            del self._heads[expert.name]
            raise ValueError(f'head of expert {expert.name!r} does not fit '
                             f'its config: {error}') from error

    def remove(self, name: str) -> None:
        """Forget a head."""
        self[name]
        del self._heads[name]

    def module(self, name: str, device: torch.device) -> nn.Module:
        """The head of an expert, ready to predict.

        Args:
            name (str): The expert.
            device (torch.device): Where a new module is built.
        """
        head = self[name]
        kind = json.dumps(head.config, sort_keys=True, default=str)
        if kind not in self._modules:
            self._modules[kind] = build_head(head.config, device).eval()
        module = self._modules[kind]
        state = {k: v.to(device) for k, v in head.state.items()}
        module.load_state_dict(state, strict=True, assign=True)
        return module
