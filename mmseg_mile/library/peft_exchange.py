# SPDX-License-Identifier: Apache-2.0
"""Adapters to and from folders of plain PEFT."""
from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

import peft
import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from torch import Tensor

from mmseg_mile.adapters.targets import check_lora_config, lora_scaling
from mmseg_mile.files import new_folder, read_tensors, write_tensors
from mmseg_mile.structures import Expert
from mmseg_mile.structures.expert import TensorDict
from .expert_store import (ADAPTER, ADAPTER_CONFIG, PEFT_PREFIX, AnyPath,
                           not_finite, open_library, write_peft_config)

# Shape legend: C channels, I inputs, O outputs, K kernel, R rank

# How often PEFT adds the update of the output projection of an
# nn.MultiheadAttention: its layer merges it by hand, and then again through
# the projection's own layer. An adapter was trained with what PEFT computes.
OUT_PROJ_COUNT = 2
_PARTS = ('q_proj', 'k_proj', 'v_proj')
_PACKED = '.in_proj_weight'
_OUT = '.out_proj'
# where PEFT puts the projection that its layer of the attention wraps
_PEFT_OUT = '.base_layer.out_proj'
# where PEFT has the backbone when it wrapped a whole segmentor
_WRAPPED = 'backbone.'
_KEY = re.compile(r'(.+)\.lora_([AB])\.weight')
_DIGEST = re.compile('[0-9a-f]{64}')
# whatever these say, the tensors mean the same
_FREE = {
    'r', 'lora_alpha', 'lora_dropout', 'use_rslora', 'target_modules',
    'exclude_modules', 'layers_to_transform', 'layers_pattern', 'rank_pattern',
    'alpha_pattern', 'modules_to_save', 'inference_mode', 'peft_version',
    'base_model_name_or_path', 'revision', 'task_type', 'auto_mapping',
    'init_lora_weights', 'loftq_config', 'eva_config', 'ensure_weight_tying',
    'fan_in_fan_out', 'peft_type', 'bias'
}
# starts that leave the base's weights as they are
_STARTS = (True, False, 'gaussian', 'orthogonal', 'eva')
# what an earlier export, or PEFT itself, left in a folder
_PEFT_FILES = {ADAPTER_CONFIG, ADAPTER, 'README.md'}


class Pair(NamedTuple):
    """The two factors of a layer's update ``scaling * up @ down``.

    Args:
        down (Tensor): A, (R, I) or (R, I, K, K).
        up (Tensor): B, (O, R) or (O, R, 1, 1).
        scaling (float): What PEFT multiplies ``B A`` by.
    """
    down: Tensor
    up: Tensor
    scaling: float


@dataclass
class PeftAdapter:
    """An adapter that plain PEFT wrote, as an expert holds it.

    Args:
        config (dict): Of one rank and scaling for all layers.
        lora (dict[str, Tensor]): ``<module>.lora_{A,B}.weight``; modules
            as our backbone names them.
        others (dict[str, Tensor]): Tensors of modules that were saved whole.
        base_fingerprint (str, optional): Of the base, where the folder tells
            it.
        peft_version (str, optional): That wrote the folder.
    """
    config: Dict[str, Any]
    lora: TensorDict
    others: TensorDict
    base_fingerprint: Optional[str]
    peft_version: Optional[str]


def export_peft(library: AnyPath,
                name: str,
                folder: AnyPath,
                force: bool = False) -> Expert:
    """Write an expert's backbone as a plain PEFT LoRA folder.

    ``peft.PeftModel.from_pretrained(backbone, folder)`` loads it into the
    stock backbone with the base's weights, and gives the expert's features.
    Norm layers that the expert owns are in ``modules_to_save``. Head,
    prototypes and classes are not PEFT's and stay behind.

    Args:
        library (str | Path): The library.
        name (str): The expert.
        folder (str | Path): Must not exist, unless ``force`` is set and it
            is an earlier export.
        force (bool): Whether to replace it.

    Raises:
        ValueError: If the folder is taken, the expert has no adapter, or a
            file was changed.
        OSError: If the disk is full or fails.
    """
    store, folder = open_library(library), Path(folder)
    expert = store.load(name)
    if not expert.parts.get('adapter'):
        raise ValueError(f'expert {name!r} has no adapter, only a head: '
                         'tools/export_expert.py writes it as a checkpoint')
    if folder.exists() and not force:
        raise ValueError(f'{folder} exists: name another folder, or replace '
                         'an earlier export with --force')
    if folder.exists() and not (folder.is_dir() and
                                {p.name
                                 for p in folder.iterdir()} <= _PEFT_FILES):
        raise ValueError(f'{folder} holds more than a PEFT adapter: --force '
                         'replaces earlier exports only, name another folder')
    with new_folder(folder) as fresh:
        write_peft_folder(fresh, expert, store.load_base()[0])
    return expert


def write_peft_folder(folder: Path, expert: Expert,
                      base: Mapping[str, Tensor]) -> None:
    """Write an adapter for ``PeftModel.from_pretrained(backbone, folder)``.

    Norm layers go into ``modules_to_save``. The fingerprint of the base goes
    into ``revision``, which PEFT keeps and does not look at.

    Args:
        folder (Path): An empty one.
        expert (Expert): Has an adapter.
        base (Mapping[str, Tensor]): State dict of the stock backbone.
    """
    lora, norm = expert.parts['adapter'], expert.parts.get('norm', {})
    settings = expert.configs['adapter']
    rank, scaling = settings['r'], lora_scaling(settings)
    factors, _ = _sorted(lora, '', folder)
    pairs = pack_pairs({
        m: Pair(*ab, scaling)
        for m, ab in factors.items()
    }, base, rank)
    targets = sorted(m for m in pairs if not m.endswith(_PEFT_OUT))
    wide = {
        re.escape(m): len(pairs[m].down)
        for m in targets if len(pairs[m].down) != rank
    }
    power = 0.5 if settings.get('use_rslora') else 1
    config = LoraConfig(
        target_modules=_as_named(targets, base),
        modules_to_save=sorted({k.rpartition('.')[0]
                                for k in norm}) or None,
        rank_pattern=wide,
        alpha_pattern={
            m: settings['lora_alpha'] * (r // rank)**power
            for m, r in wide.items()
        },
        inference_mode=True,
        revision=expert.base_fingerprint,
        **settings)
    write_peft_config(folder, config, peft_version=peft.__version__)
    tensors = {
        f'{m}.lora_{x}.weight': value
        for m, pair in pairs.items()
        for x, value in (('A', pair.down), ('B', pair.up))
    }
    write_tensors(
        folder / ADAPTER, {
            PEFT_PREFIX + key: value
            for key, value in (*tensors.items(), *norm.items())
        })


def read_peft_folder(folder: Path, base: Mapping[str, Tensor]) -> PeftAdapter:
    """Read a LoRA folder of plain PEFT.

    The adapted model may have been the stock backbone, ours, or a segmentor
    around it; stock attention is taken apart, see :func:`unpack_pairs`.
    Layers of a lower rank than others are filled up with zeros, and where
    scalings differ, B takes them in.

    Args:
        folder (Path): With ``adapter_config.json`` and
            ``adapter_model.safetensors``.
        base (Mapping[str, Tensor]): State dict of the stock backbone.

    Raises:
        ValueError: If a file is missing or broken, or holds what an expert
            cannot; names the file and the key.
    """
    content = _read_config(folder / ADAPTER_CONFIG)
    settings = _lora_settings(content, folder / ADAPTER_CONFIG)
    path = folder / ADAPTER
    if not path.is_file():
        raise ValueError(
            f'{path} is missing: save the adapter with '
            'save_pretrained(folder, safe_serialization=True); a pickle such '
            'as adapter_model.bin is not read, it could run code')
    stored = read_tensors(path)
    for problem in not_finite(stored, path):
        raise ValueError(f'{problem}: its training diverged. Import an '
                         'adapter from before that, or train it again')
    stored = {k.removeprefix(PEFT_PREFIX): v for k, v in stored.items()}
    prefix = _prefix(stored)
    factors, others = _sorted(stored, prefix, path)
    pairs = {}
    for module, (down, up) in factors.items():
        # PEFT adapts the output projection with its attention's settings
        named = prefix + module.removesuffix(_PEFT_OUT)
        scaling = _scaling(content, settings, named, len(down), path)
        pairs[module] = Pair(down.float(), up.float(), scaling)
    fingerprint = next((content[key]
                        for key in ('revision', 'base_model_name_or_path')
                        if _DIGEST.fullmatch(str(content.get(key)))), None)
    names = attentions(base)
    if fingerprint is None:
        _refuse_dead(pairs, names, path)
    pairs = unpack_pairs(pairs, names, settings['r'])
    rank = max(len(pair.down) for pair in pairs.values())
    scaling = lora_scaling(settings)
    if rank != settings['r']:
        settings.update(r=rank, lora_alpha=scaling * rank, use_rslora=False)
    lora = {}
    for module, pair in pairs.items():
        down, up = _of_rank(pair, rank, scaling)
        lora[f'{module}.lora_A.weight'] = down
        lora[f'{module}.lora_B.weight'] = up
    return PeftAdapter(settings, lora, others, fingerprint,
                       content.get('peft_version'))


def attentions(base: Mapping[str, Tensor]) -> List[str]:
    """Names of the ``nn.MultiheadAttention`` of a stock backbone.

    Args:
        base (Mapping[str, Tensor]): Its state dict.
    """
    return [k[:-len(_PACKED)] for k in base if k.endswith(_PACKED)]


def unpack_base(base: Mapping[str, Tensor]) -> TensorDict:
    """A stock state dict under the names that layers have with us."""
    unpacked = dict(base)
    for name in attentions(base):
        for kind in ('weight', 'bias'):
            packed = unpacked.pop(f'{name}.in_proj_{kind}', None)
            if packed is not None:
                for part, value in zip(_PARTS, packed.chunk(3)):
                    unpacked[f'{name}.{part}.{kind}'] = value
    return unpacked


def unpack_pairs(pairs: Mapping[str, Pair], names: List[str],
                 rank: int) -> Dict[str, Pair]:
    """PEFT's pairs of stock attentions as pairs of their projections.

    Args:
        pairs (Mapping[str, Pair]): By module, as PEFT names them.
        names (list[str]): The attentions.
        rank (int): ``r`` of the config. A packed pair of three times that
            rank may be one that :func:`pack_pairs` made.
    """
    unpacked = dict(pairs)
    for name in names:
        packed = unpacked.pop(name, None)
        out = unpacked.pop(name + _PEFT_OUT, None)
        if packed is not None:
            split = _diagonal_blocks(packed, rank)
            if split is None:
                split = [packed._replace(up=up) for up in packed.up.chunk(3)]
            elif out is not None:
                out = out._replace(down=out.down[:rank], up=out.up[:, :rank])
            unpacked.update({
                f'{name}.{part}': p
                for part, p in zip(_PARTS, split)
            })
        if out is not None:
            unpacked[name + _OUT] = out._replace(up=out.up * OUT_PROJ_COUNT)
        # zeros fill the places of projections without an adapter
        for part in (*_PARTS, 'out_proj'):
            pair = unpacked.get(f'{name}.{part}')
            if pair is not None and not (pair.down.any() or pair.up.any()):
                del unpacked[f'{name}.{part}']
    return unpacked


def pack_pairs(pairs: Mapping[str, Pair], base: Mapping[str, Tensor],
               rank: int) -> Dict[str, Pair]:
    """Inverse of :func:`unpack_pairs`.

    Args:
        pairs (Mapping[str, Pair]): By module, as we name them, of one
            rank and scaling.
        base (Mapping[str, Tensor]): State dict of the stock backbone.
        rank (int): Of the pairs.
    """
    packed = dict(pairs)
    for name in attentions(base):
        like = base[name + _PACKED]
        parts = [packed.pop(f'{name}.{part}', None) for part in _PARTS]
        out = packed.pop(name + _OUT, None)
        given = [pair for pair in (*parts, out) if pair is not None]
        if not given:
            continue
        width, scaling = like.shape[1], given[0].scaling
        zero = Pair(
            like.new_zeros(rank, width), like.new_zeros(width, rank), scaling)
        whole, out = [pair or zero for pair in parts], out or zero
        if all(torch.equal(pair.down, whole[0].down) for pair in whole):
            down = whole[0].down
            up = torch.cat([pair.up for pair in whole])
        else:
            down = torch.cat([pair.down for pair in whole])
            up = torch.block_diag(*(pair.up for pair in whole))
        packed[name] = Pair(down, up, scaling)
        # PEFT gives the output projection the rank of the attention
        down, up = _of_rank(
            out._replace(up=out.up / OUT_PROJ_COUNT), len(down), scaling)
        packed[name + _PEFT_OUT] = Pair(down, up, scaling)
    return packed


def _diagonal_blocks(packed: Pair, rank: int) -> Optional[List[Pair]]:
    """The three pairs of a packed one; None unless we packed three."""
    if len(packed.down) != 3 * rank:
        return None
    blocks = [
        row[:, rank * i:rank * (i + 1)]
        for i, row in enumerate(packed.up.chunk(3))
    ]
    if not torch.equal(torch.block_diag(*blocks), packed.up):
        return None
    return [
        Pair(down, up, packed.scaling)
        for down, up in zip(packed.down.chunk(3), blocks)
    ]


def _of_rank(pair: Pair, rank: int, scaling: float) -> Tuple[Tensor, Tensor]:
    """The same update with a higher rank and another scaling."""
    down, up = pair.down, pair.up
    if pair.scaling != scaling:
        up = (up.double() * (pair.scaling / scaling)).to(up.dtype)
    more = rank - len(down)
    if more:
        down = torch.cat([down, down.new_zeros(more, *down.shape[1:])])
        up = torch.cat([up, up.new_zeros(up.shape[0], more, *up.shape[2:])], 1)
    return down, up


def _read_config(path: Path) -> Dict[str, Any]:
    """Settings of a LoRA adapter that is ``W + s B A``, and no more.

    Fields that are missing or null have PEFT's defaults.
    """
    try:
        content = json.loads(path.read_bytes().decode())
    except (OSError, ValueError) as error:
        raise ValueError(
            f'{path} cannot be read ({error}): name a folder that '
            'save_pretrained() of a PEFT LoRA model wrote.') from error
    if not isinstance(content, dict) or content.get('peft_type') != 'LORA':
        raise ValueError(f'{path} is no LoRA adapter: its peft_type must '
                         "be 'LORA'")
    # older versions do not write all fields, and some tools write null
    plain = {
        f.name: f.default
        for f in dataclasses.fields(LoraConfig)
        if f.default is not dataclasses.MISSING
    }
    content = {**plain, **{k: v for k, v in content.items() if v is not None}}
    start = content['init_lora_weights']
    if start not in _STARTS:
        raise ValueError(
            f'{path}: init_lora_weights={start!r} changes the base\'s '
            'weights, so the adapter fits no other base: save it with '
            'path_initial_model_for_weight_conversion, which turns it into '
            'a plain one')
    if content['bias'] != 'none':
        raise ValueError(f'{path}: bias={content["bias"]!r}: an expert has no '
                         "biases of its own; train with bias='none'")
    for key, value in content.items():
        if key not in _FREE and value and value != plain.get(key):
            raise ValueError(f'{path}: {key}={value!r} is more than '
                             'W + s B A, which is all that an expert can '
                             'hold: train a plain LoRA adapter')
    return content


def _lora_settings(config: Mapping[str, Any], path: Path) -> Dict[str, Any]:
    """Checked settings of a config, whose errors name its path."""
    try:
        return check_lora_config({
            key: config[key]
            for key in ('r', 'lora_alpha', 'lora_dropout', 'use_rslora')
        })
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error


def _scaling(content: Mapping[str, Any], settings: Mapping[str, Any],
             module: str, rank: int, path: Path) -> float:
    """What PEFT multiplies ``B A`` of a module by.

    Args:
        content (Mapping): Of the folder's config.
        settings (Mapping): Of layers that no pattern names.
        module (str): Its full name in the model that was adapted.
        rank (int): Of its tensors.
        path (Path): Of the tensors, for messages.
    """
    own = dict(settings)
    for key, pattern in (('r', 'rank_pattern'), ('lora_alpha',
                                                 'alpha_pattern')):
        special = content.get(pattern) or {}
        own[key] = special.get(
            get_pattern_key(special.keys(), module), own[key])
    if own['r'] != rank:
        raise ValueError(f'{path} has tensors of rank {rank} for {module!r}, '
                         f'{ADAPTER_CONFIG} says {own["r"]}: the two files '
                         'do not belong together')
    return lora_scaling(_lora_settings(own, path.with_name(ADAPTER_CONFIG)))


def _prefix(stored: Mapping[str, Tensor]) -> str:
    """Where the backbone is in the model that was adapted."""
    adapted = [key for key in stored if '.lora_' in key]
    for prefix in (_WRAPPED * 2, _WRAPPED):
        if all(key.startswith(prefix) for key in adapted):
            return prefix
    return ''


def _sorted(stored: Mapping[str, Tensor], prefix: str,
            path: Path) -> Tuple[Dict[str, Tuple[Tensor, Tensor]], TensorDict]:
    """A and B by module, and the tensors that are neither."""
    found: Dict[str, TensorDict] = {}
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


def _as_named(targets: List[str], base: Mapping[str, Tensor]) -> Any:
    """Targets as PEFT finds exactly these: a list takes endings, too."""
    layers = {key.rpartition('.')[0] for key in base} - set(targets)
    if any(layer.endswith(f'.{t}') for layer in layers for t in targets):
        return f'(?:{"|".join(map(re.escape, targets))})'
    return targets


def _refuse_dead(pairs: Mapping[str, Pair], names: List[str],
                 path: Path) -> None:
    """An output projection alone was never run by stock attention."""
    for name in names:
        if name + _OUT in pairs and not any(f'{name}.{part}' in pairs
                                            for part in _PARTS):
            raise ValueError(
                f'{path} adapts {name + _OUT!r}, which nn.MultiheadAttention '
                'never calls, so that PEFT left it out of every forward: '
                f'target the attention, {name!r}, and train again')
