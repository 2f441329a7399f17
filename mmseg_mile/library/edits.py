# SPDX-License-Identifier: Apache-2.0
"""Experts that come to a library, leave it, or change their names."""
from __future__ import annotations

import math
import shutil
import unicodedata
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

from torch import Tensor

from mmseg_mile.adapters.adapter import (Adapter, Residual,
                                         concatenate_adapters, cut_adapter,
                                         mix_norm)
from mmseg_mile.adapters.base_weights import (adapter_of, check_base,
                                              fingerprint, weights_checksum)
from mmseg_mile.gates.prototypes import merge_prototypes
from mmseg_mile.structures import Expert, check_task_name
from mmseg_mile.structures.expert import check_classes
from .expert_store import (ADAPTER_CONFIG, BASE, INDEX, RECORD, ExpertStore,
                           StoredExpert)
from .files import (check_sum, locked, pending, read_json, write_file,
                    write_json)
from .peft_folder import PeftConfig, unpack_base

AnyPath = Union[str, Path]
_HALF_WRITTEN = ('.new', '.old', '.partial')


def open_library(root: AnyPath) -> ExpertStore:
    """The library in a folder, or in a run's work dir.

    Args:
        root (str | Path): Folder with a ``library.json``, or one with a
            folder ``library`` that has one.

    Raises:
        ValueError: If there is none.
    """
    for folder in (Path(root), Path(root) / 'library'):
        store = ExpertStore(folder)
        if store.exists:
            return store
    raise ValueError(f'{root} is no library: it has no {INDEX}. Name the '
                     'folder `library` of a work dir.')


def add_expert(library: AnyPath,
               other: AnyPath,
               name: str,
               new: Optional[str] = None,
               force: bool = False) -> StoredExpert:
    """Copy an expert of another library over the same base.

    Its prototypes come along, so that it is routable at once. Files are
    copied byte for byte. A library that does not exist yet is begun with
    the other one's base.

    Args:
        library (str | Path): Gets the expert.
        other (str | Path): Has it.
        name (str): Its name there.
        new (str, optional): Its name here. Defaults to the same.
        force (bool): Whether it may replace an expert of that name.

    Raises:
        ValueError: If the bases differ, naming both fingerprints, if a file
            of the expert was changed, if its statistics are of another gate,
            or if the name is taken.
    """
    source_store = open_library(other)
    source, = source_store.open([name])
    source.verify()
    new = name if new is None else new
    if not Path(library).exists():
        check_task_name(new)
        store = ExpertStore(library)
        store.save_base(*source_store.load_base())
    else:
        store = open_library(library)
    if store.base_fingerprint != source.base_fingerprint:
        raise ValueError(
            f'expert {name!r} of {source_store.root} belongs to the base '
            f'{source.base_fingerprint[:16]}, library {store.root} to '
            f'{store.base_fingerprint[:16]}: an adapter is a change of one '
            'base, so train its task over this one.')
    check_free(store, new, force)
    check_statistics(store, source)
    store.place(new, partial(_copy_files, source, new))
    return store.open([new])[0]


def remove_expert(library: AnyPath, name: str) -> None:
    """Take an expert out; all other files stay as they are, bit for bit.

    Raises:
        ValueError: If it is not in the library.
    """
    store = open_library(library)
    store.unlist(name)
    _delete(store, name)


def rename_expert(library: AnyPath,
                  name: str,
                  new: str,
                  force: bool = False) -> StoredExpert:
    """Give an expert another name, at the same place in the order.

    Raises:
        ValueError: If there is no such expert, or the name is taken.
    """
    store = open_library(library)
    source, = store.open([name])
    source.verify()
    if new == name:
        raise ValueError(f'expert {name!r} has this name already')
    check_free(store, new, force, but=name)
    store.place(new, partial(_copy_files, source, new), instead_of=name)
    _delete(store, name)
    return store.open([new])[0]


def leftovers(store: ExpertStore) -> List[Path]:
    """What killed writes left in a library's folder, and no one needs.

    That is half-written and half-replaced files, and folders of experts
    that the library does not list. Other files and folders are not ours.
    Open the experts first: one may still lie in its temporary folder.
    """
    return [
        path for path in sorted(store.root.iterdir())
        if path.name not in (INDEX, BASE, *store.names) and _is_ours(path)
    ]


def prune_library(library: AnyPath, dry_run: bool = False) -> List[Path]:
    """Delete :func:`leftovers`.

    Args:
        library (str | Path): The library.
        dry_run (bool): Whether to only tell what would go.

    Returns:
        list[Path]: What was, or would be, deleted.

    Raises:
        ValueError: If an expert is broken: what is left over may be its
            last whole copy.
    """
    store = open_library(library)
    for expert in store.open(store.names):
        expert.verify()
    # not while another process writes an expert
    with locked(store.root):
        found = leftovers(store)
        for path in found if not dry_run else ():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    return found


def check_free(store: ExpertStore,
               name: str,
               force: bool,
               but: Optional[str] = None) -> None:
    """Raise if a name cannot be given to an expert.

    Args:
        store (ExpertStore): The library.
        name (str): The name.
        force (bool): Whether an expert of that name may be replaced.
        but (str, optional): Expert that is about to go. Defaults to None.

    Raises:
        ValueError: If the name is taken, or differs from one that is by
            upper and lower case only, which are one folder to some disks.
    """
    check_task_name(name)
    for known in store.names:
        if known == name and not force:
            raise ValueError(f'library {store.root} has an expert {name!r}: '
                             'choose another name, or replace it with '
                             '--force.')
        if known not in (name, but) and _on_disk(known) == _on_disk(name):
            raise ValueError(f'library {store.root} has an expert {known!r}, '
                             f'and {name!r} is the same name to some disks: '
                             'choose another one.')


def check_statistics(store: ExpertStore, expert: StoredExpert) -> None:
    """Raise unless one gate can compare an expert with those of a library.

    Raises:
        ValueError: If its prototypes are of another kind or size.
    """
    for other in store.open(store.names[:1]):
        mine, theirs = ({
            key: (value.dim(), *value.shape[1:])
            for key, value in each.parts.get('prototypes', {}).items()
        } for each in (expert, other))
        if mine != theirs:
            raise ValueError(
                f'the prototypes of expert {expert.name!r} are {mine} (number '
                f'of axes, sizes behind the first), those of {other.name!r} '
                f'in {store.root} are {theirs}: they come from other gates or '
                'embedders. Fit them anew: export the expert, then import it '
                'with --images.')


def _copy_files(source: StoredExpert, name: str, folder: Path) -> None:
    for file, checksum in source.checksums.items():
        write_file(folder / file, (source.folder / file).read_bytes())
        check_sum(folder / file, checksum)
    if name == source.name:
        write_file(folder / RECORD, (source.folder / RECORD).read_bytes())
        return
    record = read_json(source.folder / RECORD)
    write_json(folder / RECORD, dict(record, name=name))


def _delete(store: ExpertStore, name: str) -> None:
    folder = store.root / name
    for path in (pending(folder), folder):
        shutil.rmtree(path, ignore_errors=True)


def _is_ours(path: Path) -> bool:
    if path.name.startswith('.'):
        return path.name.endswith(_HALF_WRITTEN)
    return path.is_dir() and all(
        p.name in (ADAPTER_CONFIG, RECORD) or p.suffix == '.safetensors'
        for p in path.iterdir())


def _on_disk(name: str) -> str:
    return unicodedata.normalize('NFKC', name).casefold()


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
    for part, tensors in expert.parts.items():
        # an infinite reach says that nothing was calibrated
        known = {
            key: value
            for key, value in tensors.items()
            if (part, key) != ('prototypes', 'reach')
        }
        broken += _not_finite(known, folder)
    return broken


def _check_settings(expert: StoredExpert) -> None:
    """PEFT's file and the record must tell one rank and scaling."""
    if not expert.parts.get('adapter'):
        return
    stored = PeftConfig(expert.folder).lora_config
    config = expert.configs['adapter']
    told = {key: config.get(key, stored[key]) for key in stored}
    if stored != told:
        raise ValueError(f'adapter_config.json says {stored}, expert.json '
                         f'{told}')


def _not_finite(tensors: Mapping[str, Tensor], where: Path) -> List[str]:
    return [
        f'{where}: {key!r} holds values that are not finite'
        for key, value in tensors.items() if not value.isfinite().all()
    ]


@dataclass
class Merged:
    """What :func:`merge_experts` made.

    Args:
        name (str): The new expert.
        rank (int): Of its adapter.
        head (str): Expert whose head and classes it has.
        weights (dict[str, float]): Of the experts it was made of.
        residuals (dict[str, Residual]): What each layer lost, by its name;
            {} where nothing was cut.
    """
    name: str
    rank: int
    head: str
    weights: Dict[str, float]
    residuals: Dict[str, Residual] = field(default_factory=dict)


def merge_experts(library: AnyPath,
                  names: Sequence[str],
                  new: str,
                  weights: Optional[Sequence[float]] = None,
                  rank: Optional[int] = None,
                  head: Optional[str] = None,
                  pooled: bool = False,
                  force: bool = False) -> Merged:
    """Add an expert whose update is ``sum_i w_i s_i B_i A_i`` exactly.

    Its rank is the sum of the ranks, or ``rank``, to which the update is cut
    by singular values. Heads cannot be added: it takes one of theirs, with
    its classes. Norm layers are averaged with the weights, brought to sum 1,
    an expert that owns none counting as the base; so with weights of that
    sum the backbone is the one that a gate fuses for such a routing.
    Prototypes are merged as :func:`merge_prototypes` says, without weights:
    they tell of images, not of updates.

    Args:
        library (str | Path): The library; its other experts stay.
        names (Sequence[str]): Experts to merge.
        new (str): Name of the new one.
        weights (Sequence[float], optional): One per expert, above 0.
            Defaults to None: equal ones of sum 1.
        rank (int, optional): Of the new one. Defaults to None: nothing is
            cut.
        head (str, optional): Expert that gives the head. Defaults to None:
            the heaviest, of equal ones the first.
        pooled (bool): Whether to make one prototype of all. Defaults to
            False.
        force (bool): Whether an expert of that name may be replaced.

    Raises:
        ValueError: If an argument is out of range, a name is unknown or
            taken, or a file was changed.
    """
    store = open_library(library)
    shares = _checked_weights(names, weights)
    if head is None:
        head = max(shares, key=lambda name: shares[name])
    elif head not in shares:
        raise ValueError(f'--head must be one of the merged experts '
                         f'{list(shares)}, got {head!r}')
    check_free(store, new, force)
    experts = {e.name: e.load() for e in store.open(list(shares))}
    merged = Merged(new, 0, head, shares)
    adapter = _merged_adapter(store, experts, merged, rank)
    chosen = experts[head]
    norm = dict(norm=adapter.norm) if adapter.norm else {}
    kept = dict(adapter=adapter.lora, head=chosen.parts['head'], **norm)
    prototypes = merge_prototypes(
        [e.parts['prototypes'] for e in experts.values()], pooled)
    store.save(
        replace(
            chosen,
            name=new,
            parts=dict(kept, prototypes=prototypes),
            configs=dict(
                chosen.configs,
                adapter=dict(chosen.configs['adapter'],
                             **_plain(merged.rank))),
            provenance=dict(
                _provenance(experts, merged),
                weights_sha256=weights_checksum(kept))))
    return merged


def _plain(rank: int) -> Dict[str, Any]:
    """Settings of an adapter of scaling 1."""
    return dict(r=rank, lora_alpha=rank, use_rslora=False)


def _checked_weights(names: Sequence[str],
                     weights: Optional[Sequence[float]]) -> Dict[str, float]:
    if not names or len(set(names)) != len(names):
        raise ValueError(f'name each expert to merge once, got {list(names)}')
    if weights is None:
        weights = [1 / len(names)] * len(names)
    if len(weights) != len(names) or not all(w > 0 and math.isfinite(w)
                                             for w in weights):
        raise ValueError(f'--weights must be one number above 0 for each of '
                         f'{list(names)}, got {list(weights)}')
    return dict(zip(names, map(float, weights)))


def _merged_adapter(store: ExpertStore, experts: Dict[str, Expert],
                    merged: Merged, rank: Optional[int]) -> Adapter:
    """The adapter; notes rank and residuals."""
    base = unpack_base(store.load_base()[0])
    mixture = [(merged.weights[name], adapter_of(expert, base))
               for name, expert in experts.items()]
    adapter = concatenate_adapters(mixture)
    ranks = {len(v) for k, v in adapter.lora.items() if '.lora_A' in k}
    if not ranks:
        raise ValueError(f'none of {list(experts)} has an adapter: there is '
                         'nothing to merge')
    merged.rank, = ranks
    if rank is not None:
        if not 1 <= rank <= merged.rank:
            raise ValueError(
                f'--rank must be from 1 to {merged.rank}, the sum of the '
                f'ranks, got {rank}; leave it out to lose nothing')
        merged.rank = rank
        adapter, merged.residuals = cut_adapter(adapter, rank)
    total = sum(merged.weights.values())
    adapter.norm = mix_norm(base, [(w / total, a) for w, a in mixture])
    return adapter


def _provenance(experts: Dict[str, Expert], merged: Merged) -> Dict[str, Any]:
    parts: List[Dict[str, Any]] = [
        dict(
            expert=name,
            weight=merged.weights[name],
            provenance=expert.provenance) for name, expert in experts.items()
    ]
    return dict(merged_from=parts, rank=merged.rank, head_from=merged.head)
