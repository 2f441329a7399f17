# SPDX-License-Identifier: Apache-2.0
"""Plain PEFT LoRA folders, to and from an expert's tensors."""
from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple

import peft
from peft import LoraConfig
from torch import Tensor

from mmseg_mile.experts.disk_writes import write_file
from mmseg_mile.experts.files import read_tensors, sha256, write_tensors
from mmseg_mile.experts.stored_expert import PEFT_PREFIX
from .config import lora_scaling
from .peft_attention import Pair, attentions, pack_pairs, unpack_pairs
from .peft_config import CONFIG, PeftConfig

TENSORS = 'adapter_model.safetensors'
_KEY = re.compile(r'(.+)\.lora_([AB])\.weight')
# where PEFT has the backbone when it wrapped a whole segmentor
_WRAPPED = 'backbone.'
_OUT = '.out_proj'


@dataclass
class PeftAdapter:
    """An adapter that plain PEFT wrote, as an expert holds it.

    Args:
        lora_config (dict): Of one rank and scaling for all layers.
        lora (dict[str, Tensor]): ``<module>.lora_{A,B}.weight``; modules
            as our backbone names them.
        others (dict[str, Tensor]): Tensors of modules that were saved whole.
        config (PeftConfig): What the folder said.
    """
    lora_config: Dict[str, Any]
    lora: Dict[str, Tensor]
    others: Dict[str, Tensor]
    config: PeftConfig


def read_peft_folder(folder: Path, base: Mapping[str, Tensor]) -> PeftAdapter:
    """Read a LoRA folder of plain PEFT.

    The adapted model may have been the stock backbone, ours, or a segmentor
    around it; stock attention is taken apart, see
    :func:`~.peft_attention.unpack_pairs`. Layers of a lower rank than others
    are filled up with zeros, and where scalings differ, B takes them in.

    Args:
        folder (Path): With ``adapter_config.json`` and
            ``adapter_model.safetensors``.
        base (Mapping[str, Tensor]): State dict of the stock backbone.

    Raises:
        ValueError: If a file is missing or broken, or holds what an expert
            cannot; names the file and the key.
    """
    config = PeftConfig(folder)
    path = folder / TENSORS
    if not path.is_file():
        raise ValueError(
            f'{path} is missing: save the adapter with '
            'save_pretrained(folder, safe_serialization=True); a pickle such '
            'as adapter_model.bin is not read, it could run code')
    stored = {
        key.removeprefix(PEFT_PREFIX): value
        for key, value in read_tensors(path, sha256(path)).items()
    }
    prefix = _prefix(stored)
    factors, others = _sorted(stored, prefix, path)
    pairs = {}
    for module, (down, up) in factors.items():
        # PEFT adapts the output projection with its attention's settings
        named = module.removesuffix(f'.base_layer{_OUT}')
        scaling = config.scaling(prefix + named, down.shape[0])
        pairs[module] = Pair(down.float(), up.float(), scaling)
    names = attentions(base)
    if config.base_fingerprint is None:
        _refuse_dead(pairs, names, path)
    pairs = unpack_pairs(pairs, names, config.lora_config['r'])
    lora_config = dict(config.lora_config)
    rank = max(len(pair.down) for pair in pairs.values())
    scaling = lora_scaling(lora_config)
    if rank != lora_config['r']:
        lora_config.update(r=rank, lora_alpha=scaling * rank, use_rslora=False)
    lora = {}
    for module, pair in pairs.items():
        down, up = _of_rank(pair, rank, scaling)
        lora[f'{module}.lora_A.weight'] = down
        lora[f'{module}.lora_B.weight'] = up
    return PeftAdapter(lora_config, lora, others, config)


def write_peft_folder(folder: Path, lora_config: Dict[str, Any],
                      lora: Mapping[str, Tensor], norm: Mapping[str, Tensor],
                      base: Mapping[str, Tensor], fingerprint: str) -> None:
    """Write an adapter for ``PeftModel.from_pretrained(backbone, folder)``.

    Norm layers go into ``modules_to_save``. The fingerprint of the base goes
    into ``revision``, which PEFT keeps and does not look at.

    Args:
        folder (Path): An empty one.
        lora_config (dict): As an expert keeps it.
        lora (Mapping[str, Tensor]): The adapter, as an expert keeps it.
        norm (Mapping[str, Tensor]): Norm layers that the expert owns.
        base (Mapping[str, Tensor]): State dict of the stock backbone.
        fingerprint (str): Of the base.
    """
    rank, scaling = lora_config['r'], lora_scaling(lora_config)
    factors, _ = _sorted(lora, '', folder)
    pairs = pack_pairs({
        m: Pair(*both, scaling)
        for m, both in factors.items()
    }, base, rank)
    targets = sorted(m for m in pairs if not m.endswith(f'.base_layer{_OUT}'))
    wide = {
        re.escape(m): len(pairs[m].down)
        for m in targets if len(pairs[m].down) != rank
    }
    power = 0.5 if lora_config.get('use_rslora') else 1
    config = LoraConfig(
        target_modules=_named(targets, base),
        modules_to_save=sorted({k.rpartition('.')[0]
                                for k in norm}) or None,
        rank_pattern=wide,
        alpha_pattern={
            m: lora_config['lora_alpha'] * (r // rank)**power
            for m, r in wide.items()
        },
        inference_mode=True,
        revision=fingerprint,
        **lora_config)
    content = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in config.to_dict().items()
    }
    content['peft_version'] = peft.__version__
    text = json.dumps(content, indent=2, sort_keys=True)
    write_file(folder / CONFIG, text.encode())
    tensors = {
        f'{m}.lora_{x}.weight': value
        for m, pair in pairs.items()
        for x, value in (('A', pair.down), ('B', pair.up))
    }
    write_tensors(folder / TENSORS, {
        PEFT_PREFIX + key: value
        for key, value in {
            **tensors,
            **norm
        }.items()
    })


def _prefix(stored: Mapping[str, Tensor]) -> str:
    """Where the backbone is in the model that was adapted."""
    adapted = [key for key in stored if '.lora_' in key]
    for prefix in (_WRAPPED * 2, _WRAPPED):
        if all(key.startswith(prefix) for key in adapted):
            return prefix
    return ''


def _sorted(
        stored: Mapping[str, Tensor], prefix: str, path: Path
) -> Tuple[Dict[str, Tuple[Tensor, Tensor]], Dict[str, Tensor]]:
    """A and B by module, and the tensors that are neither."""
    found: Dict[str, Dict[str, Tensor]] = {}
    others = {}
    for full_key, value in stored.items():
        key = full_key.removeprefix(prefix)
        match = _KEY.fullmatch(key)
        if match:
            found.setdefault(match[1], {})[match[2]] = value
        elif '.lora_' in key:
            raise ValueError(f'{path} holds {full_key!r}, which is no factor '
                             'of a linear layer or convolution: train a '
                             'plain LoRA adapter of the backbone')
        else:
            others[key] = value
    halves = sorted(m for m, both in found.items() if set(both) != {'A', 'B'})
    if halves or not found:
        raise ValueError(f'{path} has no pair of lora_A and lora_B for '
                         f'{halves[:5] or "any layer"}: export it again')
    return {m: (both['A'], both['B']) for m, both in found.items()}, others


def _of_rank(pair: Pair, rank: int, scaling: float) -> Tuple[Tensor, Tensor]:
    """The same update with another rank and scaling."""
    down, up = pair.down, pair.up
    if pair.scaling != scaling:
        up = (up.double() * (pair.scaling / scaling)).to(up.dtype)
    more = rank - len(down)
    if more:
        wide = up.new_zeros(up.shape[0], rank, *up.shape[2:])
        wide[:, :len(down)] = up
        long = down.new_zeros(rank, *down.shape[1:])
        long[:len(down)] = down
        down, up = long, wide
    return down, up


def _named(targets: List[str], base: Mapping[str, Tensor]) -> Any:
    """Targets as PEFT finds exactly these: a list takes endings, too."""
    layers = {key.rpartition('.')[0] for key in base} - set(targets)
    if any(layer.endswith(f'.{t}') for layer in layers for t in targets):
        return f'(?:{"|".join(map(re.escape, targets))})'
    return targets


def _refuse_dead(pairs: Mapping[str, Pair], names: List[str],
                 path: Path) -> None:
    """An output projection alone was never run by stock attention."""
    for name in names:
        if f'{name}{_OUT}' in pairs and not any(f'{name}.{part}_proj' in pairs
                                                for part in 'qkv'):
            raise ValueError(
                f'{path} adapts {name + _OUT!r}, which nn.MultiheadAttention '
                'never calls, so that PEFT left it out of every forward: '
                f'target the attention, {name!r}, and train again')
