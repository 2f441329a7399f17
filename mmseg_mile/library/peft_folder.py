# SPDX-License-Identifier: Apache-2.0
"""Plain PEFT LoRA folders, to and from an expert's tensors."""
from __future__ import annotations

import dataclasses
import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

import peft
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from mmseg_mile.adapters.targets import check_lora_config, lora_scaling
from .expert_store import PEFT_PREFIX
from .files import read_tensors, sha256, write_file, write_tensors

_PARTS = ('q_proj', 'k_proj', 'v_proj')
_PACKED = '.in_proj_weight'
_OUT = '.base_layer.out_proj'
# Shape legend: C channels, R rank


class Pair(NamedTuple):
    """The two factors of a layer's update.

    Args:
        down (Tensor): A, (R, I) or (R, I, K, K).
        up (Tensor): B, (O, R) or (O, R, 1, 1).
        scaling (float): What PEFT multiplies ``B A`` by.
    """
    down: Tensor
    up: Tensor
    scaling: float


def attentions(base: Mapping[str, Tensor]) -> List[str]:
    """Names of the ``nn.MultiheadAttention`` of a stock backbone.

    Args:
        base (Mapping[str, Tensor]): Its state dict.
    """
    return [k[:-len(_PACKED)] for k in base if k.endswith(_PACKED)]


def unpack_base(base: Mapping[str, Tensor]) -> Dict[str, Tensor]:
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
        out = unpacked.pop(f'{name}{_OUT}', None)
        if packed is not None:
            split = _diagonal_blocks(packed, rank)
            if split is not None and out is not None:
                out = out._replace(down=out.down[:rank], up=out.up[:, :rank])
            # zeros fill the places of projections without an adapter
            unpacked.update({
                f'{name}.{part}': pair
                for part, pair in zip(_PARTS, split or _shared_down(packed))
                if _has_values(pair)
            })
        if out is not None and _has_values(out):
            # as often as PEFT adds it
            unpacked[f'{name}.out_proj'] = out._replace(up=out.up *
                                                        out_proj_count())
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
        out = packed.pop(f'{name}.out_proj', None)
        given = [pair for pair in (*parts, out) if pair is not None]
        if not given:
            continue
        width, scaling = like.shape[1], given[0].scaling
        zero = Pair(
            like.new_zeros(rank, width), like.new_zeros(width, rank), scaling)
        whole = [pair or zero for pair in parts]
        if all(torch.equal(pair.down, whole[0].down) for pair in whole):
            down = whole[0].down
            up = torch.cat([pair.up for pair in whole])
        else:
            down = torch.cat([pair.down for pair in whole])
            up = torch.block_diag(*(pair.up for pair in whole))
        out = out or zero
        more = len(down) - rank
        packed[name] = Pair(down, up, scaling)
        packed[f'{name}{_OUT}'] = Pair(
            torch.cat([out.down, like.new_zeros(more, width)]),
            torch.cat([out.up / out_proj_count(),
                       like.new_zeros(width, more)], 1), scaling)
    return packed


@functools.lru_cache(maxsize=None)
def out_proj_count() -> float:
    """How often the installed PEFT adds the update of an output projection.

    Its layer for ``nn.MultiheadAttention`` merges that update by hand and
    then again through the projection's own layer, which makes 2 in 0.21.2.
    The adapter was trained with what PEFT computes, so that counts.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        attention = nn.MultiheadAttention(1, 1, bias=False, batch_first=True)
        attention.in_proj_weight.fill_(1)
        attention.out_proj.weight.fill_(0)
        holder = nn.ModuleDict(dict(attn=attention))
        inject_adapter_in_model(
            LoraConfig(r=1, lora_alpha=1, target_modules=['attn']), holder)
        for key, value in holder.state_dict().items():
            if 'out_proj.lora' in key:
                value.fill_(1)
        one = torch.ones(1, 1, 1)
        # B of the packed pair is 0: the value is 1, and so is its update
        return float(holder['attn'](one, one, one)[0])


def _shared_down(packed: Pair) -> Tuple[Pair, ...]:
    return tuple(packed._replace(up=up) for up in packed.up.chunk(3))


def _diagonal_blocks(packed: Pair, rank: int) -> Optional[List[Pair]]:
    """The three pairs of a packed one; None unless we packed three."""
    if len(packed.down) != 3 * rank:
        return None
    rows = packed.up.chunk(3)
    blocks = [row[:, rank * i:rank * (i + 1)] for i, row in enumerate(rows)]
    if not torch.equal(torch.block_diag(*blocks), packed.up):
        return None
    return [
        Pair(down, up, packed.scaling)
        for down, up in zip(packed.down.chunk(3), blocks)
    ]


def _has_values(pair: Pair) -> bool:
    return bool(pair.down.any() or pair.up.any())


CONFIG = 'adapter_config.json'
# whatever these say, the tensors mean the same
_FREE = {
    'r', 'lora_alpha', 'lora_dropout', 'use_rslora', 'target_modules',
    'exclude_modules', 'layers_to_transform', 'layers_pattern', 'rank_pattern',
    'alpha_pattern', 'modules_to_save', 'inference_mode', 'peft_version',
    'base_model_name_or_path', 'revision', 'task_type', 'auto_mapping',
    'init_lora_weights', 'loftq_config', 'eva_config', 'ensure_weight_tying',
    'fan_in_fan_out', 'peft_type', 'bias'
}  # yapf: disable
# starts that leave the base's weights as they are
_STARTS = (True, False, 'gaussian', 'orthogonal', 'eva')
_DIGEST = re.compile('[0-9a-f]{64}')


class PeftConfig:
    """Settings of an adapter that plain PEFT wrote.

    Args:
        folder (Path): With an ``adapter_config.json``.

    Raises:
        ValueError: If the file is missing or broken, or the adapter is more
            than ``W + s B A``; names the field, its value and a way out.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / CONFIG
        try:
            content = json.loads(path.read_bytes().decode('utf-8'))
        except (OSError, ValueError) as error:
            raise ValueError(
                f'{path} cannot be read ({error}): name a folder that '
                'save_pretrained() of a PEFT LoRA model wrote.') from error
        if not isinstance(content, dict) or content.get('peft_type') != 'LORA':
            raise ValueError(f'{path} is no LoRA adapter: its peft_type must '
                             "be 'LORA'")
        self.path = path
        self._content: Dict[str, Any] = content
        self._check()
        #: Arguments of ``LoraConfig``, as an expert keeps them.
        self.lora_config = check_lora_config({
            key: content[key]
            for key in ('r', 'lora_alpha', 'lora_dropout', 'use_rslora')
            if key in content
        })

    @property
    def base_fingerprint(self) -> Optional[str]:
        """str, optional: Of the base, where the folder tells it."""
        for key in ('revision', 'base_model_name_or_path'):
            value = self._content.get(key)
            if isinstance(value, str) and _DIGEST.fullmatch(value):
                return value
        return None

    @property
    def peft_version(self) -> Optional[str]:
        """str, optional: Version that wrote the folder."""
        return self._content.get('peft_version')

    def scaling(self, module: str, rank: int) -> float:
        """What PEFT multiplies ``B A`` of a module by.

        Args:
            module (str): Its full name in the model that was adapted.
            rank (int): Of its tensors.

        Raises:
            ValueError: If the config says another rank.
        """
        settings = {}
        for key, pattern in (('r', 'rank_pattern'), ('lora_alpha',
                                                     'alpha_pattern')):
            special = self._content.get(pattern) or {}
            match = get_pattern_key(special.keys(), module)
            settings[key] = special.get(match, self.lora_config[key])
        if settings['r'] != rank:
            raise ValueError(f'{self.path} gives {module!r} the rank '
                             f'{settings["r"]}, its tensors have {rank}: the '
                             'two files do not belong together')
        return settings['lora_alpha'] / (
            rank**0.5 if self.lora_config['use_rslora'] else rank)

    def _check(self) -> None:
        content = self._content
        start = content.get('init_lora_weights', True)
        if start not in _STARTS:
            raise ValueError(
                f'{self.path}: init_lora_weights={start!r} changes the '
                "base's weights, so the adapter fits no other base: save it "
                'with path_initial_model_for_weight_conversion, which turns '
                'it into a plain one')
        if content.get('bias', 'none') != 'none':
            raise ValueError(f'{self.path}: bias={content["bias"]!r}: an '
                             "expert has no biases of its own; train with "
                             "bias='none'")
        plain = {
            f.name: f.default
            for f in dataclasses.fields(LoraConfig)
            if f.default is not dataclasses.MISSING
        }
        for key, value in content.items():
            if key in _FREE or not value or value == plain.get(key):
                continue
            raise ValueError(f'{self.path}: {key}={value!r} is more than '
                             'W + s B A, which is all that an expert can '
                             'hold: train a plain LoRA adapter')


TENSORS = 'adapter_model.safetensors'
_KEY = re.compile(r'(.+)\.lora_([AB])\.weight')
# where PEFT has the backbone when it wrapped a whole segmentor
_WRAPPED = 'backbone.'
_OUT_PEFT_FOLDER = '.out_proj'


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
        named = module.removesuffix(f'.base_layer{_OUT_PEFT_FOLDER}')
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
    targets = sorted(
        m for m in pairs if not m.endswith(f'.base_layer{_OUT_PEFT_FOLDER}'))
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
        if f'{name}{_OUT_PEFT_FOLDER}' in pairs and not any(
                f'{name}.{part}_proj' in pairs for part in 'qkv'):
            raise ValueError(
                f'{path} adapts {name + _OUT_PEFT_FOLDER!r}, which '
                'nn.MultiheadAttention '
                'never calls, so that PEFT left it out of every forward: '
                f'target the attention, {name!r}, and train again')
