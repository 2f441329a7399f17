# SPDX-License-Identifier: Apache-2.0
"""Whether a library is what was written."""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping

from torch import Tensor

from mmseg_mile.experts import ExpertStore, StoredExpert
from mmseg_mile.experts.expert_record import BASE
from mmseg_mile.experts.files import check_sum
from mmseg_mile.experts.library_edits import AnyPath, leftovers, open_library
from mmseg_mile.models.backbones.base_weights import fingerprint
from mmseg_mile.models.backbones.stored_adapters import adapter_of, check_base
from mmseg_mile.models.lora.peft_attention import unpack_base
from mmseg_mile.models.lora.peft_config import PeftConfig
from mmseg_mile.models.segmentors.expert_heads import check_classes


@dataclass
class LibraryState:
    """What :func:`verify_library` found.

    Args:
        num_experts (int): Experts that the library lists.
        broken (list[str]): What is wrong, with the file it is wrong with.
        leftovers (list[Path]): Files that no expert needs; they do no harm.
    """
    num_experts: int
    broken: List[str] = field(default_factory=list)
    leftovers: List[Path] = field(default_factory=list)


def verify_library(library: AnyPath) -> LibraryState:
    """Check all that a library holds.

    Checksums of every file, fields of every record, the fingerprint of the
    base computed anew, finite values, and whether each adapter fits the
    layers of the base and each head its classes.

    Raises:
        ValueError: If there is no library, or its ``library.json`` is
            broken, without which nothing can be checked.
    """
    store = open_library(library)
    state = LibraryState(len(store.names))
    base = _verified_base(store, state.broken)
    base_is_whole = not state.broken
    for name in store.names:
        broken = broken_files(store, name)
        if base_is_whole and not broken:
            expert, = store.open([name])
            broken = _wrong_content(expert, base, store.base_fingerprint)
        state.broken += broken
    state.leftovers = leftovers(store)
    return state


def broken_files(store: ExpertStore, name: str) -> List[str]:
    """What is wrong with the files of an expert, each by its path."""
    try:
        expert, = store.open([name])
    except ValueError as error:
        return [str(error)]
    broken = []
    for file, checksum in expert.checksums.items():
        try:
            check_sum(expert.folder / file, checksum)
        except ValueError as error:
            broken.append(str(error))
    return broken


def _verified_base(store: ExpertStore, broken: List[str]) -> Dict[str, Tensor]:
    path = store.root / BASE
    try:
        base, stored = store.load_base()
    except ValueError as error:
        broken.append(str(error))
        return {}
    if fingerprint(base) != stored:
        broken.append(f'{path} has the fingerprint {fingerprint(base)[:16]}, '
                      f'the library says {stored[:16]}: restore it from a '
                      'copy.')
    broken += _not_finite(base, path)
    return unpack_base(base)


def _wrong_content(expert: StoredExpert, base: Mapping[str, Tensor],
                   base_fingerprint: str) -> List[str]:
    """What checksums do not tell: an expert that was written wrong."""
    folder = expert.folder
    checks: List[Any] = [
        lambda: check_base([expert], base_fingerprint),
        lambda: check_classes(expert),
        lambda: adapter_of(expert, base),
        lambda: _check_settings(expert),
    ]
    broken = []
    for check in checks:
        try:
            check()
        except ValueError as error:
            broken.append(f'{folder}: {error}')
    for part in ('lora', 'norm', 'head'):
        broken += _not_finite(getattr(expert, part), folder)
    # an infinite reach says that nothing was calibrated
    known = {k: v for k, v in expert.prototypes.items() if k != 'reach'}
    return broken + _not_finite(known, folder)


def _check_settings(expert: StoredExpert) -> None:
    """PEFT's file and the record must tell one rank and scaling."""
    if not expert.lora:
        return
    stored = PeftConfig(expert.folder).lora_config
    told = {key: expert.lora_config.get(key, stored[key]) for key in stored}
    if stored != told:
        raise ValueError(f'adapter_config.json says {stored}, expert.json '
                         f'{told}')


def _not_finite(tensors: Mapping[str, Tensor], where: Path) -> List[str]:
    return [
        f'{where}: {key!r} holds values that are not finite'
        for key, value in tensors.items() if not value.isfinite().all()
    ]
