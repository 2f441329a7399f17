# SPDX-License-Identifier: Apache-2.0
"""Trainable LoRA layers put into a backbone, and taken out again."""
from __future__ import annotations

import contextlib
import copy
import re
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import torch
from mmcv.cnn import is_norm
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from .adapter import Adapter
from .fast_layers import (FrozenConv2d, RecomputedGELU, is_plain_convolution,
                          lora_layer)
from .targets import lora_scaling

_ADAPTER = 'default'


class _Swap(NamedTuple):
    name: str
    original: nn.Module
    replacement: nn.Module


class LoRAInjection:
    """One trainable adapter inside a frozen backbone.

    The backbone's own modules are never changed: trainable layers and
    copies of norm layers take their places, and :meth:`detach` puts the
    originals back, so that the base stays usable, bit for bit, at any time.
    PEFT creates and initialises the adapter; the layers of ``fast_layers``
    compute with it, and stand in for convolutions without an adapter and for
    GELUs meanwhile.

    Args:
        backbone (nn.Module): The frozen network.
        targets (Sequence[str]): Full names of the layers to adapt; none
            leaves the expert its norm layers, or nothing at all.
        config (dict): Of :func:`check_lora_config`.
        train_norm (bool): Whether the expert owns the norm layers: copies
            of them train, affine parameters and statistics alike.
    """

    def __init__(self, backbone: nn.Module, targets: Sequence[str],
                 config: Dict[str, Any], train_norm: bool) -> None:
        self._backbone = backbone
        self._config = config
        modules = dict(backbone.named_modules())
        if targets:
            pattern = '|'.join(re.escape(name) for name in targets)
            inject_adapter_in_model(
                LoraConfig(target_modules=f'(?:{pattern})', **config),
                backbone, _ADAPTER)
            # PEFT leaves a note that would confuse the next one
            del backbone.peft_config
        self._lora = [
            _Swap(name, modules[name],
                  lora_layer(backbone.get_submodule(name), _ADAPTER))
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
            if name not in targets and is_plain_convolution(module)
        ]
        # a block may hold its activation under two names and call either;
        # ReLU, unlike GELU, keeps its output, which the next layer shares
        self._activations = [
            _Swap(name, module, RecomputedGELU(module))
            for name, module in backbone.named_modules(remove_duplicate=False)
            if isinstance(module, nn.GELU)
        ]
        self.attached = True
        self.attach()

    def attach(self) -> None:
        """Put the trainable layers into the backbone."""
        for swap in self._swaps():
            _set_submodule(self._backbone, swap.name, swap.replacement)
        self.attached = True

    @contextlib.contextmanager
    def in_place(self, training: bool) -> Iterator[None]:
        """Attached inside the block only, in training mode or not."""
        self.attach()
        for swap in self._lora:
            # while it is detached, changes of mode pass it by
            swap.replacement.train(training)
        try:
            yield
        finally:
            self.detach()

    def values(self) -> nn.ModuleDict:
        """All that trains, for whoever looks for parameters and buffers.

        The layers beside are the backbone's, and are left out.
        """
        lora = nn.ParameterDict({
            key.replace('.', '/'): parameter
            for key, parameter in self._parameters()
        })
        norm = nn.ModuleList(self.owned_norms())
        return nn.ModuleDict(dict(lora=lora, norm=norm))

    def detach(self) -> None:
        """Put the backbone's own layers back."""
        for swap in self._swaps():
            _set_submodule(self._backbone, swap.name, swap.original)
        self.attached = False

    def adapter(self) -> Adapter:
        """Copies of all trained values, as an expert keeps them."""
        lora = {k: p.detach().clone() for k, p in self._parameters()}
        norm = {
            f'{swap.name}.{key}': value.detach().clone()
            for swap in self._norm
            for key, value in swap.replacement.state_dict().items()
        }
        return Adapter(lora, norm, lora_scaling(self._config))

    def load(self, adapter: Adapter) -> None:
        """Copy an expert's values into the trainable layers."""
        with torch.no_grad():
            for key, parameter in self._parameters():
                parameter.copy_(adapter.lora[key])
        for swap in self._norm:
            swap.replacement.load_state_dict({
                key:
                adapter.norm.get(f'{swap.name}.{key}', own)
                for key, own in swap.replacement.state_dict().items()
            })

    def enable_gradients(self) -> None:
        """Let every value train, in a backbone's ``frozen_stages`` too."""
        for _, parameter in self._parameters():
            parameter.requires_grad_()
        for norm in self.owned_norms():
            norm.requires_grad_()

    def owned_norms(self) -> List[nn.Module]:
        """The trainable copies of norm layers."""
        return [swap.replacement for swap in self._norm]

    def _swaps(self) -> List[_Swap]:
        return self._lora + self._norm + self._frozen + self._activations

    def _parameters(self) -> Iterator[Tuple[str, nn.Parameter]]:
        for swap in self._lora:
            layer: Any = swap.replacement
            yield f'{swap.name}.lora_A.weight', layer.lora_A
            yield f'{swap.name}.lora_B.weight', layer.lora_B


def _set_submodule(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition('.')
    setattr(model.get_submodule(parent), child, module)
