# SPDX-License-Identifier: Apache-2.0
"""Experts to and from folders of plain PEFT."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

from mmcv.cnn import is_norm
from torch import Tensor

from mmseg_mile.adapters.base_weights import weights_checksum
from mmseg_mile.adapters.lora_expert_backbone import LoRAExpertBackbone
from mmseg_mile.adapters.targets import called_modules, is_adaptable
from mmseg_mile.methods.mile.expert_heads import ExpertHead
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from mmseg_mile.structures import Expert
from .edits import AnyPath, check_free, open_library
from .expert_store import ExpertStore, StoredExpert
from .files import new_folder
from .peft_folder import (CONFIG, TENSORS, PeftAdapter, read_peft_folder,
                          write_peft_folder)

# what an earlier export, or PEFT itself, left in a folder
_PEFT_FILES = {CONFIG, TENSORS, 'README.md'}


def export_peft(library: AnyPath,
                name: str,
                folder: AnyPath,
                force: bool = False) -> StoredExpert:
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
    stored, = store.open([name])
    expert = stored.load()
    if not expert.parts.get('adapter'):
        raise ValueError(f'expert {name!r} has no adapter, only a head: '
                         'tools/export_expert.py writes it as a checkpoint')
    check_export_folder(folder, force)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder) as fresh:
        write_peft_folder(fresh,
                          expert.configs['adapter'], expert.parts['adapter'],
                          expert.parts.get('norm', {}),
                          store.load_base()[0], expert.base_fingerprint)
    return stored


def check_export_folder(folder: Path, force: bool) -> None:
    """Raise unless a folder is free, or holds an adapter to replace.

    Raises:
        ValueError: Naming the folder.
    """
    if not folder.exists():
        return
    if not force:
        raise ValueError(f'{folder} exists: name another folder, or replace '
                         'an earlier export with --force')
    if not folder.is_dir() or not {p.name
                                   for p in folder.iterdir()} <= _PEFT_FILES:
        raise ValueError(f'{folder} holds more than a PEFT adapter: --force '
                         'replaces earlier exports only, name another folder')


def read_import(store: ExpertStore, folder: Path) -> PeftAdapter:
    """The adapter of a folder, if it is of a library's base.

    Raises:
        ValueError: If the folder names another base, or holds what an expert
            cannot.
    """
    base, fingerprint = store.load_base()
    adapter = read_peft_folder(folder, base)
    told = adapter.config.base_fingerprint
    if told not in (None, fingerprint):
        raise ValueError(
            f'the adapter in {folder} was trained on the base {told[:16]}, '
            f'library {store.root} has {fingerprint[:16]}: import it into a '
            'library of its own base')
    return adapter


def import_peft(library: AnyPath,
                folder: AnyPath,
                new: str,
                model: ExpertSegmentor,
                head: ExpertHead,
                prototypes: Dict[str, Tensor],
                force: bool = False) -> PeftAdapter:
    """Make an expert of a LoRA folder that plain PEFT wrote.

    The adapter may have been trained on the stock backbone, on ours, or on a
    segmentor around it, and be of any layers, ranks and scalings; nothing is
    lost. What is more than ``W + s B A`` and norm layers is refused.

    Args:
        library (str | Path): Gets the expert.
        folder (str | Path): The adapter.
        new (str): Name of the expert.
        model (ExpertSegmentor): Built for the library, which shows that the
            expert fits; its base is loaded and the expert imported.
        head (ExpertHead): See :mod:`~.head_sources`.
        prototypes (dict[str, Tensor]): Statistics of the gate, see
            :func:`~.image_prototypes.fit_prototypes`.
        force (bool): Whether an expert of that name may be replaced.

    Returns:
        PeftAdapter: What was in the folder.

    Raises:
        ValueError: If the adapter is of another base or fits no layer, a
            part does not fit the model, or the name is taken.
    """
    store = open_library(library)
    check_free(store, new, force)
    adapter = read_import(store, Path(folder))
    model.backbone.load_base(*store.load_base())
    check_layers(model.backbone, adapter)
    norm = dict(norm=adapter.others) if adapter.others else {}
    weights = dict(adapter=adapter.lora, head=head.state, **norm)
    expert = Expert(
        name=new,
        classes=head.classes,
        palette=head.palette,
        parts=dict(weights, prototypes=prototypes),
        configs=dict(adapter=adapter.lora_config, head=head.config),
        base_fingerprint=store.base_fingerprint,
        provenance=dict(
            weights_sha256=weights_checksum(weights),
            imported_from=str(folder),
            peft_version=adapter.config.peft_version,
            base_told=adapter.config.base_fingerprint is not None))
    for other in store.open(store.names):
        if other.name != new:
            model.gate.load_state(other.name, other.parts['prototypes'])
    model.import_expert(expert)
    store.save(expert)
    return adapter


def check_layers(backbone: LoRAExpertBackbone, adapter: PeftAdapter) -> None:
    """Raise unless an adapter changes layers that an expert can change.

    Raises:
        ValueError: Naming the modules and what they are.
    """
    modules: Dict[str, Any] = dict(backbone.backbone.named_modules())
    adapted = {key.rpartition('.lora_')[0] for key in adapter.lora}
    where = adapter.config.path.parent
    unknown = sorted(adapted - set(modules))
    if unknown:
        raise ValueError(
            f'the adapter in {where} is of layers that this backbone has '
            f'not: {unknown[:5]}. It has {sorted(modules)[1:4]} and more; '
            'import an adapter of the same backbone')
    fixed = sorted(n for n in adapted if not is_adaptable(modules[n]))
    if fixed:
        raise ValueError(
            f'the adapter in {where} changes {fixed[0]!r}, a '
            f'{type(modules[fixed[0]]).__name__}: an expert adapts linear '
            'layers and convolutions without groups; leave it out of '
            'target_modules and train again')
    dead = sorted(adapted - called_modules(backbone.backbone))
    if dead:
        raise ValueError(f'the adapter in {where} is of layers that are '
                         f'never called: {dead[:5]}; leave them out')
    foreign = _not_norm(adapter, modules)
    if foreign:
        raise ValueError(
            f'the adapter in {where} holds {foreign[:5]}, which belong to no '
            'norm layer of the backbone: an expert owns norm layers, '
            'everything else is an adapter; a head goes in by '
            '--head-checkpoint')


def _not_norm(adapter: PeftAdapter, modules: Dict[str, Any]) -> List[str]:
    return sorted(
        key for key in adapter.others
        if not is_norm(modules.get(key.rpartition('.')[0])))
