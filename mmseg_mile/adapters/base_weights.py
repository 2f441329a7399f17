# SPDX-License-Identifier: Apache-2.0
"""Identity and keys of a frozen base's weights."""
from __future__ import annotations

import contextlib
import hashlib
import os
from http.client import HTTPException
from pickle import UnpicklingError
from typing import (Any, Dict, Iterable, Iterator, List, Mapping, Optional,
                    Sequence)

import torch
from mmcv.cnn import is_norm
from mmengine.runner.checkpoint import (get_external_models, get_mmcls_models,
                                        get_torch_safe_globals,
                                        get_torchvision_models)
from torch import Tensor, nn

from mmseg_mile.structures import Expert
from mmseg_mile.structures.expert import TensorDict
from .adapter import Adapter
from .targets import lora_scaling

_SWITCH = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
# how torch begins what it says of a damaged file, and of a damaged download
_BROKEN = ('PytorchStreamReader', 'invalid hash value')
# Addresses of the checkpoints that mmengine knows by a name.
_KNOWN_BY_NAME = {
    'mmcls': get_mmcls_models,
    'open-mmlab': get_external_models,
    'torchvision': get_torchvision_models
}


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

    A pre-hook of ``load_state_dict``.
    """
    mine = [k for k in state_dict if k.startswith(prefix)]
    own = f'{prefix}backbone.'
    if not any(k.startswith(own) for k in mine):
        for key in mine:
            state_dict[own + key[len(prefix):]] = state_dict.pop(key)


def load_strictly(backbone: nn.Module, state: Dict[str, Tensor]) -> None:
    """Load the base of a library, a ValueError if its tensors differ."""
    try:
        backbone.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError('the base of the library does not fit '
                         f'{type(backbone).__name__}: {error}') from error


def pretrained_checkpoint(backbone: nn.Module) -> Optional[str]:
    """The checkpoint that a backbone's ``init_cfg`` names, if it does."""
    configs = getattr(backbone, 'init_cfg', None) or []
    for config in [configs] if isinstance(configs, dict) else configs:
        if config.get('type') == 'Pretrained':
            return config['checkpoint']
    return None


@contextlib.contextmanager
def checked_loading(backbone: nn.Module) -> Iterator[None]:
    """Let a backbone take its pretrained weights, all of them, and no more.

    mmengine loads leniently: a checkpoint of another network, or of another
    size of it, goes through with a warning.

    Args:
        backbone (nn.Module): Whose ``init_weights`` runs inside the block.

    Raises:
        ValueError: If a configured checkpoint leaves weights unset, cannot
            be fetched or found, or see :func:`weights_only`.
    """
    unset: List[str] = []

    def note_misshapen(module: nn.Module, state: Dict[str, Tensor],
                       prefix: str, *args: Any) -> None:
        unset.extend(key for key, value in module.state_dict().items()
                     if value.shape != getattr(
                         state.get(prefix + key), 'shape', value.shape))

    def note_missing(module: nn.Module, keys: Any) -> None:
        unset.extend(k for k in keys.missing_keys
                     if 'num_batches_tracked' not in k)

    checkpoint = pretrained_checkpoint(backbone)
    where = f'backbone.init_cfg.checkpoint {checkpoint!r}'
    handles = (backbone.register_load_state_dict_pre_hook(note_misshapen),
               backbone.register_load_state_dict_post_hook(note_missing))
    try:
        with weights_only(where) if checkpoint else weights_only():
            yield
    except (OSError, HTTPException, KeyError, AssertionError) as error:
        # the last two are a name or a prefix that does not exist
        if checkpoint is None:
            raise
        fetch = f'download {_address(checkpoint)} elsewhere and ' * (
            '://' in checkpoint)
        raise ValueError(f'{where} cannot be loaded ({error}): {fetch}name '
                         'a file there, or with --pretrained') from error
    finally:
        for handle in handles:
            handle.remove()
    if checkpoint and unset:
        raise ValueError(
            f'{where} does not fit {type(backbone).__name__}: it lacks '
            f'{len(unset)} weights or has them in another shape, for example '
            f'{unset[:3]}. Give the checkpoint of this backbone, with its '
            'bare keys or a `prefix`.')


def _address(checkpoint: str) -> str:
    """Where a checkpoint lies, of one that mmengine knows by a name."""
    scheme, _, name = checkpoint.partition('://')
    return _KNOWN_BY_NAME.get(scheme, dict)().get(name, checkpoint)


@contextlib.contextmanager
def weights_only(name: str = 'a checkpoint of the config') -> Iterator[None]:
    """Read checkpoints inside the block as weights, never as programs.

    A ``.pth`` is a pickle, and unpickling one runs what its author likes.
    mmengine tries torch's ``weights_only=True`` and, where that fails, runs
    it all the same; for downloads it does not even try.

    Args:
        name (str): What is read, for the message.

    Raises:
        ValueError: If a checkpoint holds more than weights, or is broken.
    """
    previous = os.environ.get(_SWITCH)
    os.environ[_SWITCH] = '1'
    try:
        with torch.serialization.safe_globals(get_torch_safe_globals()):
            yield
    except (UnpicklingError, EOFError, RuntimeError) as error:
        if isinstance(error,
                      RuntimeError) and not str(error).startswith(_BROKEN):
            raise
        raise ValueError(
            f'{name} is broken, or holds more than weights, and reading it '
            'would run code that it brings. Copy or download it again; or, if '
            "you trust it, load it with torch and save its 'state_dict' alone."
            f' torch says: {error}') from error
    finally:
        if previous is None:
            del os.environ[_SWITCH]
        else:
            os.environ[_SWITCH] = previous


def hold_statistics(backbone: nn.Module, owned: Iterable[nn.Module]) -> None:
    """Put every norm layer into eval mode but those that are ``owned``."""
    kept = {id(module) for module in owned}
    for module in backbone.modules():
        if is_norm(module) and id(module) not in kept:
            module.eval()


def check_base(experts: Sequence[Expert], fingerprint: str) -> None:
    """Raise a ValueError unless all were trained on this base."""
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

    Raises:
        ValueError: If a file was changed, or the tensors do not fit, see
            :meth:`Adapter.check_fit`.
    """
    config = expert.configs.get('adapter')
    adapter = Adapter(
        expert.parts.get('adapter', {}), expert.parts.get('norm', {}),
        lora_scaling(config) if config else 1.0)
    adapter.check_fit(expert.name, base, adapts)
    return adapter.clone(next(iter(base.values())).device)
