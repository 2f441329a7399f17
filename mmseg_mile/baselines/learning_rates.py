# SPDX-License-Identifier: Apache-2.0
"""Learning rates of some parameters, within an optimizer's config."""
from __future__ import annotations

from typing import Any, Dict, Iterable

_STOCK = ('DefaultOptimWrapperConstructor', None)


def with_rate_of(names: Iterable[str], factor: float,
                 config: Dict[str, Any]) -> Dict[str, Any]:
    """Multiply the learning rate of the parameters of these names.

    What ``paramwise_cfg.custom_keys`` says of them holds as before: mmengine
    follows the longest key that occurs in a name, so each name becomes a key
    with the settings of the key that it has followed so far.

    Args:
        names (Iterable[str]): Full names in the model.
        factor (float): On top of an ``lr_mult`` that they may have.
        config (dict): An ``optim_wrapper``; left as it is.

    Returns:
        dict: The changed config.

    Raises:
        ValueError: If the config sets rates in another way than by
            ``custom_keys``, which would be lost.
    """
    paramwise = dict(config.get('paramwise_cfg') or {})
    others = sorted(set(paramwise) - {'custom_keys', 'bypass_duplicate'})
    if config.get('constructor') not in _STOCK or others:
        raise ValueError(
            'model.shared_lr_mult multiplies rates of optim_wrapper.'
            'paramwise_cfg.custom_keys, and optim_wrapper has '
            f'constructor={config.get("constructor")!r} and paramwise_cfg.'
            f'{others or "custom_keys"}: say the same in custom_keys, or set '
            'model.shared_lr_mult=1.')
    known = dict(paramwise.get('custom_keys') or {})
    keys = dict(known)
    for name in names:
        settings = known.get(_followed(name, known), {})
        keys[name] = dict(
            settings, lr_mult=factor * settings.get('lr_mult', 1.0))
    return dict(config, paramwise_cfg=dict(paramwise, custom_keys=keys))


def _followed(name: str, keys: Iterable[str]) -> str:
    """The key that mmengine applies to a parameter; '' if none."""
    found = [key for key in sorted(keys) if key in name]
    return max(found, key=len, default='')
