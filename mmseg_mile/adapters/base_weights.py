# SPDX-License-Identifier: Apache-2.0
"""Identity and keys of a frozen base's weights."""
from __future__ import annotations

import hashlib
from functools import partial
from typing import (Any, Callable, Dict, Iterable, List, Mapping, Optional,
                    Sequence)

import torch
from mmcv.cnn import is_norm
from torch import Tensor, nn

from mmseg_mile.structures import Expert, check_task_name
from mmseg_mile.structures.expert import TensorDict
from .adapter import Adapter
from .adapter_library import AdapterLibrary
from .targets import lora_scaling


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f'{name} {value.dtype} {list(value.shape)}\n'.encode())
        array = value.detach().cpu().contiguous()
        digest.update(array.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_checksum(parts: Mapping[str, TensorDict]) -> str:
    """SHA-256 of an expert's weights, by which its children know it.

    Prototypes are left out: a gate may fit them anew.

    Args:
        parts (Mapping[str, dict[str, Tensor]]): Of the expert.
    """
    return fingerprint({
        f'{part}.{key}': value
        for part in ('adapter', 'norm', 'head')
        for key, value in parts.get(part, {}).items()
    })


def accept_stock_keys(module: nn.Module, state_dict: Dict[str, Tensor],
                      prefix: str, *args: Any) -> None:
    """Let a checkpoint of the bare backbone load into its wrapper.

    A pre-hook of ``load_state_dict``; ``module`` keeps the bare backbone as
    ``module.backbone``.
    """
    mine = [k for k in state_dict if k.startswith(prefix)]
    own = f'{prefix}backbone.'
    if not any(k.startswith(own) for k in mine):
        for key in mine:
            state_dict[own + key[len(prefix):]] = state_dict.pop(key)


def load_strictly(backbone: nn.Module, state: Dict[str, Tensor]) -> None:
    """Load the base of a library.

    Raises:
        ValueError: If its tensors are not exactly those of ``backbone``.
    """
    try:
        backbone.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError('the base of the library does not fit '
                         f'{type(backbone).__name__}: {error}') from error


class PretrainedCheck:
    """Remembers which weights a loaded checkpoint left unset.

    mmengine loads pretrained backbones leniently, so that a checkpoint of
    another network, or of another size of it, goes through with a warning.

    Args:
        backbone (nn.Module): Whose loading is watched.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self._backbone = backbone
        self._unset: List[str] = []
        backbone.register_load_state_dict_pre_hook(self._note_misshapen)
        backbone.register_load_state_dict_post_hook(self._note_missing)

    @property
    def checkpoint(self) -> Optional[str]:
        """str, optional: The pretrained checkpoint of the config."""
        configs = getattr(self._backbone, 'init_cfg', None) or []
        for config in [configs] if isinstance(configs, dict) else configs:
            if config.get('type') == 'Pretrained':
                return config['checkpoint']
        return None

    def forget(self) -> None:
        """Start over."""
        self._unset = []

    def check(self) -> None:
        """Raise if a configured checkpoint left weights unset.

        Raises:
            ValueError: Naming the checkpoint and some of the weights.
        """
        if self.checkpoint and self._unset:
            raise ValueError(
                f'backbone.init_cfg.checkpoint {self.checkpoint!r} does not '
                f'fit {type(self._backbone).__name__}: it lacks '
                f'{len(self._unset)} weights or has them in another shape, '
                f'for example {self._unset[:3]}. Give the checkpoint of this '
                'backbone, with its bare keys or a `prefix`.')

    def refuse_other_base(self, mine: Callable[[], str], stored: str) -> None:
        """Raise if a checkpoint was configured and is another base.

        Args:
            mine (Callable): Gives the fingerprint of the base as loaded.
            stored (str): Fingerprint that is asked for.

        Raises:
            ValueError: Naming the checkpoint and both fingerprints.
        """
        if self.checkpoint and mine() != stored:
            raise ValueError(
                f'the library belongs to the base {stored[:16]}, '
                f'backbone.init_cfg loaded {mine()[:16]} from '
                f'{self.checkpoint!r}: give the checkpoint that the library '
                'was made with.')

    def _note_misshapen(self, module: nn.Module, state_dict: Dict[str, Tensor],
                        prefix: str, *args: Any) -> None:
        self._unset += [
            key for key, value in module.state_dict().items()
            if value.shape != getattr(
                state_dict.get(prefix + key), 'shape', value.shape)
        ]

    def _note_missing(self, module: nn.Module, keys: Any) -> None:
        self._unset += [
            k for k in keys.missing_keys if 'num_batches_tracked' not in k
        ]


def hold_statistics(backbone: nn.Module, owned: Iterable[nn.Module]) -> None:
    """Put every norm layer that no expert owns into eval mode.

    Args:
        backbone (nn.Module): Whose norm layers are meant.
        owned (Iterable[nn.Module]): Norm layers that train.
    """
    kept = {id(module) for module in owned}
    for module in backbone.modules():
        if is_norm(module) and id(module) not in kept:
            module.eval()


def check_base(experts: Sequence[Expert], fingerprint: str) -> None:
    """Raise unless all were trained on the base of this fingerprint.

    Raises:
        ValueError: Naming the expert and both fingerprints.
    """
    for expert in experts:
        if expert.base_fingerprint != fingerprint:
            raise ValueError(
                f'expert {expert.name!r} was trained on the base '
                f'{expert.base_fingerprint[:16]}, this backbone is '
                f'{fingerprint[:16]}: load that base, or train the expert '
                'again.')


def adapter_of(expert: Expert,
               base: Mapping[str, Tensor],
               adapts: Optional[bool] = None) -> Adapter:
    """The adapter of an expert, read from its folder if it is stored.

    Args:
        expert (Expert): The expert.
        base (Mapping[str, Tensor]): The backbone's tensors by name.
        adapts (bool, optional): Whether the backbone's experts adapt layers.
            Defaults to None: not known.

    Raises:
        ValueError: If a file was changed, or the tensors do not fit.
    """
    config = expert.configs.get('adapter')
    adapter = Adapter(
        expert.parts.get('adapter', {}), expert.parts.get('norm', {}),
        lora_scaling(config) if config else 1.0)
    adapter.check_fit(expert.name, base, adapts)
    return adapter.clone(next(iter(base.values())).device)


def take_over(experts: Sequence[Expert], library: AdapterLibrary,
              read: Callable[[Expert], Adapter]) -> None:
    """Add experts' adapters to a library; stored ones when first used.

    Args:
        experts (Sequence[Expert]): The experts.
        library (AdapterLibrary): Gets them.
        read (Callable): Expert -> adapter that fits the backbone.
    """
    for expert in experts:
        name = check_task_name(expert.name)
        if expert.is_stored:
            library.defer(name, partial(read, expert))
        else:
            library[name] = read(expert)
