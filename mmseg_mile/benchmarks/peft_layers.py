# SPDX-License-Identifier: Apache-2.0
"""PEFT's layers on stock backbones, holding the values of our experts."""
from __future__ import annotations

import re
from typing import Any, Dict, List, Sequence, Set

import torch
from mmcv.cnn import is_norm
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from mmseg_mile.structures import Expert

OUT_PROJ_NOTE = 'PEFT adds the update of out_proj twice'
_PACKED = ('q_proj', 'k_proj', 'v_proj')


def peft_targets(backbone: nn.Module, targets: Sequence[str]) -> List[str]:
    """Where a PEFT user puts adapters to reach the same layers.

    Args:
        backbone (nn.Module): Stock; its attentions are
            ``nn.MultiheadAttention``, which PEFT adapts as a whole.
        targets (Sequence[str]): Layers that ours adapts.
    """
    found: Dict[str, None] = {}
    modules = dict(backbone.named_modules())
    for target in targets:
        parent = target.rpartition('.')[0]
        packed = isinstance(modules.get(parent), nn.MultiheadAttention)
        found[parent if packed else target] = None
    return list(found)


def peft_config(backbone: nn.Module, targets: Sequence[str],
                lora: Dict[str, Any], train_norm: bool) -> LoraConfig:
    """PEFT's config for ``targets`` of a stock backbone.

    Args:
        backbone (nn.Module): Stock.
        targets (Sequence[str]): Layers that ours adapts.
        lora (dict): Rank, alpha, dropout.
        train_norm (bool): Whether each adapter owns the norm layers.

    Raises:
        ValueError: If there is no target.
    """
    if not targets:
        raise ValueError('model.backbone.lora is None: PEFT has no adapter to '
                         'compare with, give a config that has one')
    names = peft_targets(backbone, targets)
    norms = [n for n, m in backbone.named_modules() if is_norm(m)]
    pattern = '|'.join(re.escape(name) for name in names)
    return LoraConfig(
        target_modules=f'(?:{pattern})',
        modules_to_save=norms if train_norm else None,
        **lora)


@torch.no_grad()
def load_adapter(model: PeftModel, expert: Expert, name: str) -> None:
    """Copy an expert's values into the adapter ``name`` of a PEFT model.

    The packed projection of an ``nn.MultiheadAttention`` takes the shared
    ``lora_A`` and the stacked ``lora_B`` of query, key and value.
    """
    backbone = model.get_base_model()
    lora, norms = expert.parts['adapter'], expert.parts.get('norm', {})
    done: Set[str] = set()
    for target in sorted({k.rsplit('.lora_', 1)[0] for k in lora}):
        parent, _, leaf = target.rpartition('.')
        down = lora[f'{target}.lora_A.weight']
        up = lora[f'{target}.lora_B.weight']
        layer: Any = None
        if leaf in (*_PACKED, 'out_proj'):
            layer = backbone.get_submodule(parent)
        if not hasattr(layer, 'lora_A'):
            layer = backbone.get_submodule(target)
        elif leaf == 'out_proj':
            layer = layer.get_base_layer().out_proj
        elif parent in done:
            continue
        else:
            done.add(parent)
            up = torch.cat(
                [lora[f'{parent}.{p}.lora_B.weight'] for p in _PACKED])
        layer.lora_A[name].weight.copy_(down)
        layer.lora_B[name].weight.copy_(up)
    for norm in sorted({k.rpartition('.')[0] for k in norms}):
        wrapper: Any = backbone.get_submodule(norm)
        saved = wrapper.modules_to_save[name]
        saved.load_state_dict(
            {k: norms[f'{norm}.{k}']
             for k in saved.state_dict()})


def complete_dilation(model: nn.Module) -> int:
    """Give each ``lora_A`` the dilation of the convolution it adapts.

    Returns:
        int: How many lacked it.
    """
    repaired = 0
    for module in model.modules():
        base = getattr(module, 'base_layer', None)
        if isinstance(base, nn.Conv2d) and isinstance(module, LoraLayer):
            for down in module.lora_A.values():
                repaired += down.dilation != base.dilation
                down.dilation = base.dilation
    return repaired


def has_packed_attention(backbone: nn.Module) -> bool:
    """Whether PEFT would adapt an ``nn.MultiheadAttention``."""
    return any(
        isinstance(m, nn.MultiheadAttention) for m in backbone.modules())
