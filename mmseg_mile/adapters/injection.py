# SPDX-License-Identifier: Apache-2.0
"""Trainable LoRA layers put into a backbone, and taken out again."""
from __future__ import annotations

import copy
import re
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence

import torch
from mmcv.cnn import is_norm
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from .adapter import Adapter
from .fast_layers import (FrozenConv2d, RecomputedActivation, can_freeze,
                          can_recompute, trainable_layer)
from .targets import lora_scaling

ADAPTER = 'default'


class _Swap(NamedTuple):
    name: str
    original: nn.Module
    replacement: nn.Module


class LoRAInjection:
    """One trainable adapter inside a frozen backbone.

    The backbone's own modules are never changed: trainable layers and
    copies of norm layers take their places, and :meth:`detach` puts the
    originals back, so that the base stays usable, bit for bit, at any time.
    PEFT creates and initialises the adapter; our layers compute with it.
    Convolutions without an adapter keep no input for backward meanwhile, and
    adapted layers keep none that an activation function keeps as well.

    Args:
        backbone (nn.Module): The frozen network.
        targets (Sequence[str]): Full names of the layers to adapt; none
            leaves the expert its norm layers, or nothing at all.
        config (dict): Arguments of PEFT's ``LoraConfig`` without
            ``target_modules``.
        train_norm (bool): Whether the expert owns the norm layers: copies
            of them train, affine parameters and statistics alike.
    """

    def __init__(self, backbone: nn.Module, targets: Sequence[str],
                 config: dict, train_norm: bool) -> None:
        self._backbone = backbone
        self._config = config
        modules = dict(backbone.named_modules())
        if targets:
            pattern = '|'.join(re.escape(name) for name in targets)
            inject_adapter_in_model(
                LoraConfig(target_modules=f'(?:{pattern})', **config),
                backbone, ADAPTER)
            # PEFT leaves a note that would confuse the next one
            del backbone.peft_config
        self._lora = [
            _Swap(name, modules[name],
                  trainable_layer(backbone.get_submodule(name), ADAPTER))
            for name in targets
        ]
        self._norm = [
            _Swap(name, module,
                  copy.deepcopy(module).requires_grad_())
            for name, module in modules.items() if is_norm(module)
        ] if train_norm else []
        self._frozen = [
            _Swap(name, module, FrozenConv2d(module))
            for name, module in modules.items()
            if name not in targets and can_freeze(module)
        ]
        # a block may hold its activation under two names and call either
        self._activations = [
            _Swap(name, module, RecomputedActivation(module))
            for name, module in backbone.named_modules(remove_duplicate=False)
            if can_recompute(module)
        ]
        self.attached = True
        self.attach()

    def attach(self) -> None:
        """Put the trainable layers into the backbone."""
        for swap in self._swaps():
            _set_submodule(self._backbone, swap.name, swap.replacement)
        self.attached = True

    def detach(self) -> None:
        """Put the backbone's own layers back."""
        for swap in self._swaps():
            _set_submodule(self._backbone, swap.name, swap.original)
        self.attached = False

    def adapter(self) -> Adapter:
        """Copies of all trained values, as an expert keeps them."""
        return Adapter(self.lora_state(), self.norm_state(),
                       lora_scaling(self._config))

    def enable_gradients(self) -> None:
        """Let every value train, in a backbone's ``frozen_stages`` too."""
        for _, parameter in self._lora_parameters():
            parameter.requires_grad_()
        for norm in self.owned_norms():
            norm.requires_grad_()

    def lora_state(self) -> Dict[str, Tensor]:
        """Copies of the adapter: ``<module>.lora_{A,B}.weight``."""
        return {k: p.detach().clone() for k, p in self._lora_parameters()}

    def norm_state(self) -> Dict[str, Tensor]:
        """Copies of the owned norm layers' parameters and buffers."""
        return {
            f'{swap.name}.{key}': value.detach().clone()
            for swap in self._norm
            for key, value in swap.replacement.state_dict().items()
        }

    def load(self, lora: Dict[str, Tensor], norm: Dict[str, Tensor]) -> None:
        """Copy an expert's values into the trainable layers."""
        with torch.no_grad():
            for key, parameter in self._lora_parameters():
                parameter.copy_(lora[key])
        for swap in self._norm:
            if f'{swap.name}.weight' in norm:
                swap.replacement.load_state_dict({
                    key:
                    norm[f'{swap.name}.{key}']
                    for key in swap.replacement.state_dict()
                })

    def owned_norms(self) -> List[nn.Module]:
        """The trainable copies of norm layers."""
        return [swap.replacement for swap in self._norm]

    def _swaps(self) -> List[_Swap]:
        return self._lora + self._norm + self._frozen + self._activations

    def _lora_parameters(self) -> Iterator:
        for swap in self._lora:
            layer: Any = swap.replacement
            yield f'{swap.name}.lora_A.weight', layer.lora_A
            yield f'{swap.name}.lora_B.weight', layer.lora_B


def _set_submodule(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition('.')
    setattr(model.get_submodule(parent), child, module)
