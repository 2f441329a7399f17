# SPDX-License-Identifier: Apache-2.0
"""Which adapters lie behind the first stage."""
from __future__ import annotations

import re
from typing import Any, List, Sequence

import torch
from mmengine.config import ConfigDict
from torch import Tensor, nn

from .benchmark_models import build_expert_segmentor
from .settings import Settings

_PROBE_SIDE = 64


def later_stage_pattern(config: ConfigDict, settings: Settings) -> str:
    """``lora.target_modules`` for stages 2 to 4 of any backbone.

    Args:
        config (ConfigDict): Of an ``ExpertSegmentor``.
        settings (Settings): Seed and device.

    Returns:
        str: A regular expression over full names.

    Raises:
        ValueError: If there is no target, or each lies in the first stage.
    """
    backbone = build_expert_segmentor(config, settings).backbone
    if not backbone.targets:
        raise ValueError('model.backbone.lora is None: there is no adapter '
                         'whose training could be timed, give a config that '
                         'has one')
    names = later_stage_targets(backbone.backbone, backbone.targets)
    if not names:
        raise ValueError('backbone has no adapter behind its first output: '
                         'give it several out_indices to train later stages '
                         'only')
    return '|'.join(re.escape(name) for name in names)


def later_stage_targets(backbone: nn.Module,
                        targets: Sequence[str]) -> List[str]:
    """The targets that the backbone's first output does not depend on.

    Args:
        backbone (nn.Module): With several outputs, the finest first.
        targets (Sequence[str]): Full names of layers with a weight.
    """
    layers: List[Any] = [backbone.get_submodule(t) for t in targets]
    weights = [layer.weight for layer in layers]
    before = [w.requires_grad for w in weights]
    for weight in weights:
        weight.requires_grad_()
    try:
        probe = torch.zeros(
            1, 3, _PROBE_SIDE, _PROBE_SIDE, device=weights[0].device)
        outputs = backbone(probe)
        first = outputs if isinstance(outputs, Tensor) else outputs[0]
        found = torch.autograd.grad(first.sum(), weights, allow_unused=True)
    finally:
        for weight, required in zip(weights, before):
            weight.requires_grad_(required)
    return [name for name, grad in zip(targets, found) if grad is None]
