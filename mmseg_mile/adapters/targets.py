# SPDX-License-Identifier: Apache-2.0
"""The layers of a backbone that get an adapter."""
from __future__ import annotations

import difflib
import re
from typing import (Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple,
                    Union)

import torch
from mmcv.cnn import ConvAWS2d, ConvWS2d
from torch import Tensor, nn

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
    if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise ValueError('lora.lora_dropout must be in [0, 1), got '
                         f'{dropout!r}')
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


def probe_images(backbone: nn.Module, count: int, side: int = 128) -> Tensor:
    """(count, C, H, W) in [-1, 1] that a backbone accepts, always the same.

    Args:
        backbone (nn.Module): Its first convolution says how many channels
            an image has, its ``img_size``, if it is bound to one, its size.
        count (int): Number of images.
        side (int): Height and width otherwise. Defaults to 128.
    """
    size = getattr(backbone, 'img_size', side)
    height, width = (size, size) if isinstance(size, int) else tuple(size)[:2]
    channels = next((m.in_channels
                     for m in backbone.modules() if isinstance(m, nn.Conv2d)),
                    3)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, channels, height, width, generator=generator)
    return (2 * images - 1).to(next(backbone.parameters()))


# Name, module and output of a call of a module.
Call = Tuple[str, nn.Module, Any]


def probe_calls(backbone: nn.Module, images: Tensor) -> List[Call]:
    """The calls that a backbone's pass makes, in the order of their ends.

    Args:
        backbone (nn.Module): Probed in eval mode; its own call is the last,
            of the name ''.
        images (Tensor): See :func:`probe_images`.
    """
    calls: List[Call] = []
    handles = [
        module.register_forward_hook(lambda module, _, output, name=name: calls
                                     .append((name, module, output)))
        for name, module in backbone.named_modules()
    ]
    modes = {m: m.training for m in backbone.modules()}
    try:
        backbone.eval()
        with torch.no_grad():
            backbone(images)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return calls


def called_modules(backbone: nn.Module) -> Set[str]:
    """Names of the modules whose ``forward`` runs when the backbone does."""
    calls = probe_calls(backbone, probe_images(backbone, 1))
    return {name for name, _, _ in calls}


def resolve_targets(
        backbone: nn.Module,
        target_modules: Union[None, str, Sequence[str]] = None) -> List[str]:
    """Full names of the layers that get an adapter.

    Args:
        backbone (nn.Module): The network to adapt; its
            ``nn.MultiheadAttention`` are already replaced.
        target_modules (str | Sequence[str], optional): PEFT's meaning: a
            string is a regular expression for the whole module name, a
            sequence lists names or their last parts. None selects every
            linear layer and every 1x1 convolution of a backbone with linear
            layers (attention and FFN of a transformer), and every dense
            convolution of one without (a CNN). Defaults to None.

    Returns:
        list[str]: Names in the order of ``named_modules``.

    Raises:
        ValueError: If a target matches nothing, matches a layer that takes
            no adapter, or matches only layers that are never called.
    """
    called = called_modules(backbone)
    modules = dict(backbone.named_modules())
    adaptable = {n: m for n, m in modules.items() if is_adaptable(m)}
    if target_modules is None:
        return _default_targets(adaptable, called)
    if isinstance(target_modules, str):
        wanted = {target_modules: re.compile(target_modules)}
    else:
        if not target_modules:
            raise ValueError('lora.target_modules is empty: name layers, or '
                             'leave it out for the default targets.')
        wanted = {
            t: re.compile(rf'(?:.*\.)?{re.escape(t)}')
            for t in target_modules
        }
    chosen: Set[str] = set()
    for target, pattern in wanted.items():
        hits = [n for n in modules if n and pattern.fullmatch(n)]
        usable = [n for n in hits if n in adaptable]
        if not usable:
            raise ValueError(_no_match(target, hits, modules, adaptable))
        dead = [n for n in usable if n not in called]
        if dead:
            raise ValueError(
                f'lora.target_modules: {target!r} matches layers whose '
                f'forward is never called, so an adapter there would train '
                f'nothing: {dead[:5]}. Leave them out.')
        chosen.update(usable)
    return [n for n in modules if n in chosen]


def is_adaptable(module: nn.Module) -> bool:
    """Whether LoRA fits: a linear layer or a convolution without groups.

    A convolution that standardises its weight is not linear in it, so that
    a merged adapter would compute something else than a trained one.
    """
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and not isinstance(module,
                                                     (ConvWS2d, ConvAWS2d))
    return isinstance(module, nn.Linear)


def _default_targets(adaptable: Dict[str, nn.Module],
                     called: Set[str]) -> List[str]:
    alive = {n: m for n, m in adaptable.items() if n in called}
    if any(isinstance(m, nn.Linear) for m in alive.values()):
        alive = {
            n: m
            for n, m in alive.items()
            if not isinstance(m, nn.Conv2d) or tuple(m.kernel_size) == (1, 1)
        }
    if not alive:
        raise ValueError('the backbone calls no linear layer and no dense '
                         'convolution: there is nothing LoRA could adapt.')
    return list(alive)


def _no_match(target: str, hits: List[str], modules: Dict[str, nn.Module],
              adaptable: Dict[str, nn.Module]) -> str:
    if hits:
        kind = type(modules[hits[0]]).__name__
        return (f'lora.target_modules: {target!r} matches {hits[0]!r}, a '
                f'{kind}; adapters go on nn.Linear and nn.Conv2d without '
                'groups or weight standardisation only.')
    leaves = sorted({n.rpartition('.')[2] for n in adaptable} | set(adaptable))
    near: Optional[List[str]] = difflib.get_close_matches(target, leaves)
    return (f'lora.target_modules: {target!r} matches no layer of the '
            f'backbone; did you mean one of {near or leaves[:8]}?')
