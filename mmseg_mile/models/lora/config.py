# SPDX-License-Identifier: Apache-2.0
"""The ``lora`` field of a config."""
from __future__ import annotations

from typing import Any, Dict, Mapping, Optional

_NO_LAYER = dict(r=1, lora_alpha=1)
_KEYS = ('r', 'lora_alpha', 'target_modules', 'lora_dropout', 'use_rslora')


def check_lora_config(lora: Optional[Mapping[str, Any]]) -> Dict[str, Any]:
    """PEFT's ``LoraConfig`` arguments, without the targets.

    Args:
        lora (Mapping, optional): The field; None for experts that adapt no
            layer, whose files need a rank all the same.

    Raises:
        ValueError: If a key is missing or unknown, or a value is out of
            range.
    """
    if lora is None:
        lora = _NO_LAYER
    unknown = sorted(set(lora) - set(_KEYS))
    if unknown:
        raise ValueError(f'lora has unknown keys {unknown}; allowed: '
                         f'{list(_KEYS)}')
    if type(lora.get('r')) is not int or lora['r'] < 1:
        raise ValueError(f'lora.r (the rank) must be an integer >= 1, got '
                         f'{lora.get("r")!r}')
    alpha = lora.get('lora_alpha')
    if not isinstance(alpha, (int, float)) or not alpha > 0:
        raise ValueError('lora.lora_alpha must be > 0, got '
                         f'{alpha!r}')
    dropout = lora.get('lora_dropout', 0.0)
    if not 0 <= dropout < 1:
        raise ValueError(f'lora.lora_dropout must be in [0, 1), got {dropout}')
    return dict(
        r=lora['r'],
        lora_alpha=alpha,
        lora_dropout=dropout,
        use_rslora=bool(lora.get('use_rslora', False)))


def lora_scaling(config: Mapping[str, Any]) -> float:
    """``alpha / r``, or ``alpha / sqrt(r)`` for rank-stabilised LoRA."""
    rank = config['r']
    return config['lora_alpha'] / (
        rank**0.5 if config.get('use_rslora') else rank)
