# SPDX-License-Identifier: Apache-2.0
"""The decode heads of all experts."""
from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import Any, Dict, Mapping, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor, nn

from mmseg_mile.adapters.adapter_library import ExpertCache, Key
from mmseg_mile.structures import Expert, Task
from mmseg_mile.structures.expert import TensorDict, check_classes
from ..continual_segmentor import build_head

# Fields of a head's config that matter in training alone.
_TRAINING_KEYS = ('loss_decode', 'sampler', 'dropout_ratio', 'init_cfg')


@dataclass
class ExpertHead:
    """Values, config and label space of one head."""
    state: TensorDict
    config: Dict[str, Any]
    classes: Tuple[str, ...]
    palette: Tuple[Tuple[int, ...], ...]

    def num_bytes(self) -> int:
        """Memory that the tensors take."""
        return sum(v.nbytes for v in self.state.values())


class LabelSpace(NamedTuple):
    """What the outputs of a head mean."""
    classes: Tuple[str, ...]
    palette: Tuple[Tuple[int, ...], ...]


class ExpertHeads:
    """Head tensors per expert, and one module per kind of head.

    Experts whose heads have the same config share a module; handing it one
    expert's tensors takes as long as a head has parameters, not as many
    modules as there are experts.

    Args:
        cache (ExpertCache): Holds the heads' tensors.
    """

    def __init__(self, cache: ExpertCache) -> None:
        self._cache = cache
        self._labels: Dict[str, LabelSpace] = {}
        self._modules: Dict[str, nn.Module] = {}

    @property
    def names(self) -> Tuple[str, ...]:
        """tuple[str]: Experts in the order in which they were added."""
        return tuple(self._labels)

    def __getitem__(self, name: str) -> ExpertHead:
        return self._cache[self._key(name)]

    def labels(self, name: str) -> LabelSpace:
        """Label space of a head, known without its tensors."""
        self._key(name)
        return self._labels[name]

    def keep(self, task: Task, head: nn.Module, config: Dict[str,
                                                             Any]) -> None:
        """Copy the values of a trained head."""
        state = {k: v.detach().clone() for k, v in head.state_dict().items()}
        self._labels[task.name] = LabelSpace(task.classes, task.palette)
        self._cache[self._key(task.name)] = ExpertHead(state, config,
                                                       task.classes,
                                                       task.palette)

    def add(self, expert: Expert, device: torch.device) -> None:
        """Take over a head; a stored one is read when it is first used.

        Raises:
            ValueError: If its classes do not match its outputs, or, when it
                is read, its tensors do not fit its config.
        """
        check_classes(expert)
        load = partial(self._load, expert, device)
        head = None if expert.is_stored else load()
        self._labels[expert.name] = LabelSpace(expert.classes, expert.palette)
        if head is None:
            self._cache.defer(self._key(expert.name), load)
        else:
            self._cache[self._key(expert.name)] = head

    def release(self, expert: Expert, device: torch.device) -> None:
        """Let a head leave memory that was stored since."""
        self._cache.release(
            self._key(expert.name), partial(self._load, expert, device))

    def fusable(self, mixture: Mapping[str, float]) -> Dict[str, float]:
        """The experts of a mixture whose heads can be averaged.

        Args:
            mixture (Mapping[str, float]): Weights of experts.

        Returns:
            dict[str, float]: Those with the classes and the kind of head of
            the heaviest one; weights of sum 1.
        """
        if len(mixture) == 1:
            return dict.fromkeys(mixture, 1.0)
        kind = self._fusion_key(heaviest(mixture))
        shares = {
            name: weight
            for name, weight in mixture.items()
            if self._fusion_key(name) == kind
        }
        total = sum(shares.values())
        return {name: weight / total for name, weight in shares.items()}

    def fused_state(self, mixture: Mapping[str, float]) -> TensorDict:
        """Weighted mean of the tensors of the heads that are fusable.

        Args:
            mixture (Mapping[str, float]): Weights of experts, above 0.

        Returns:
            dict[str, Tensor]: Of a single head, its own tensors.
        """
        if len(mixture) == 1:
            return self[heaviest(mixture)].state
        shares = self.fusable(mixture)
        states = [(w, self[name].state) for name, w in shares.items()]
        return {
            key: _mean([(w, state[key]) for w, state in states])
            for key in states[0][1]
        }

    def fused(self, mixture: Mapping[str, float],
              device: torch.device) -> nn.Module:
        """The head of a mixture of experts, ready to predict.

        Args:
            mixture (Mapping[str, float]): Weights of experts, above 0.
            device (torch.device): Where a new module is built.
        """
        config = self[heaviest(mixture)].config
        return self._holding(config, self.fused_state(mixture), device)

    def _holding(self, config: Dict[str, Any], state: TensorDict,
                 device: torch.device) -> nn.Module:
        """The module of a kind of head, with these values in it."""
        module = self._shared(config, device)
        for key, value in state.items():
            path, _, leaf = key.rpartition('.')
            owner, value = module.get_submodule(path), value.to(device)
            if isinstance(getattr(owner, leaf), nn.Parameter):
                value = nn.Parameter(value, requires_grad=False)
            setattr(owner, leaf, value)
        return module

    def _fusion_key(self, name: str) -> Tuple[Tuple[str, ...], str]:
        """What heads must have in common to be averaged."""
        config = {
            key: value
            for key, value in self[name].config.items()
            if key not in _TRAINING_KEYS
        }
        return self.labels(name).classes, _kind(config)

    def _load(self, expert: Expert, device: torch.device) -> ExpertHead:
        state = {k: v.to(device) for k, v in expert.parts['head'].items()}
        module = self._shared(expert.configs['head'], device)
        wanted = {k: v.shape for k, v in module.state_dict().items()}
        wrong = wanted.items() ^ {k: v.shape for k, v in state.items()}.items()
        if wrong:
            raise ValueError(
                f'head of expert {expert.name!r} does not fit its config: '
                f'{sorted({key for key, _ in wrong})[:5]} are missing, not '
                'expected or of another shape. Restore it from a copy, or '
                'train its task again.')
        return ExpertHead(state, expert.configs['head'], expert.classes,
                          expert.palette)

    def _shared(self, config: Dict[str, Any],
                device: torch.device) -> nn.Module:
        kind = _kind(config)
        if kind not in self._modules:
            # reading an expert must not change what is drawn afterwards
            with torch.random.fork_rng(devices=[]):
                self._modules[kind] = build_head(config, device).eval()
        return self._modules[kind]

    def _key(self, name: str) -> Key:
        if name not in self._labels:
            raise ValueError(
                f'unknown expert {name!r}; experts: {list(self._labels)}')
        return ('head', name)


def heaviest(mixture: Mapping[str, float]) -> str:
    """The expert with the largest weight; of equal ones, the first."""
    return max(mixture, key=lambda name: mixture[name])


def _mean(parts: Sequence[Tuple[float, Tensor]]) -> Tensor:
    """Weighted mean; of integers, such as batch counts, the first."""
    if not parts[0][1].is_floating_point():
        return parts[0][1]
    total = torch.zeros_like(parts[0][1])
    for weight, value in parts:
        total.add_(value.to(total), alpha=weight)
    return total


def _kind(config: Dict[str, Any]) -> str:
    return json.dumps(config, sort_keys=True, default=str)
