# SPDX-License-Identifier: Apache-2.0
"""Experts that come to a library, leave it, or are looked at."""
from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

from torch import Tensor

from mmseg_mile.adapters.adapter import (Adapter, Residual,
                                         concatenate_adapters, cut_adapter,
                                         mix_norm)
from mmseg_mile.adapters.base_weights import (adapter_of, check_base,
                                              fingerprint, weights_checksum)
from mmseg_mile.files import read_bytes, read_json, write_bytes, write_json
from mmseg_mile.gates.prototypes import merge_prototypes
from mmseg_mile.structures import Expert, check_task_name
from mmseg_mile.structures.expert import TensorDict, check_classes
from .expert_store import (BASE, RECORD, AnyPath, ExpertStore, StoredExpert,
                           file_of, open_library)
from .peft_exchange import unpack_base


def add_expert(library: AnyPath,
               other: AnyPath,
               name: str,
               new: Optional[str] = None,
               force: bool = False) -> StoredExpert:
    """Copy an expert of another library over the same base.

    Its prototypes come along, so that it is routable at once. Files are
    copied byte for byte. A library that does not exist yet is begun with the
    other one's base.

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
    new = check_task_name(name if new is None else new)
    if not Path(library).exists():
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
    _check_statistics(store, source)
    store.place(new, partial(_copy_files, source, new))
    return store.open([new])[0]


def remove_expert(library: AnyPath, name: str) -> None:
    """Take an expert out; all other files stay as they are, bit for bit.

    Raises:
        ValueError: If it is not in the library.
    """
    open_library(library).remove(name)


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
    return store.open([new])[0]


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
        if known not in (name, but) and known.casefold() == name.casefold():
            raise ValueError(f'library {store.root} has an expert {known!r}, '
                             f'and {name!r} is the same name to some disks: '
                             'choose another one.')


def _check_statistics(store: ExpertStore, expert: StoredExpert) -> None:
    """Raise unless one gate can compare an expert with those of a library."""
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
        write_bytes(folder / file, read_bytes(source.folder / file, checksum))
    record = source.folder / RECORD
    if name == source.name:
        write_bytes(folder / RECORD, record.read_bytes())
    else:
        write_json(folder / RECORD, dict(read_json(record), name=name))


def verify_library(library: AnyPath) -> List[str]:
    """Check all that a library holds.

    Checksums of every file, fields of every record, the fingerprint of the
    base computed anew, finite values, and whether each adapter fits the
    layers of the base and each head its classes.

    Returns:
        list[str]: What is broken, with the file it is broken in.

    Raises:
        ValueError: If there is no library, or its ``library.json`` is
            broken, without which nothing can be checked.
    """
    store = open_library(library)
    broken: List[str] = []
    base: TensorDict = {}
    try:
        base, stored = store.load_base()
        if fingerprint(base) != stored:
            broken.append(
                f'{store.root / BASE} has the fingerprint '
                f'{fingerprint(base)[:16]}, the library says {stored[:16]}: '
                'restore it from a copy.')
        broken += _not_finite(base, store.root / BASE)
    except ValueError as error:
        broken.append(str(error))
    whole_base = None if broken else unpack_base(base)
    for name in store.names:
        broken += _problems(store, name, whole_base)
    return broken


def _problems(store: ExpertStore,
              name: str,
              base: Optional[Mapping[str, Tensor]] = None) -> List[str]:
    """What is wrong with an expert, each with the file it is wrong in.

    Args:
        store (ExpertStore): The library.
        name (str): The expert.
        base (Mapping[str, Tensor], optional): Layers of the base, to check
            also what checksums do not tell. Defaults to None.
    """
    try:
        expert, = store.open([name])
    except ValueError as error:
        return [str(error)]
    problems = []

    def check(where: str, act: Callable[..., Any], *arguments: Any) -> None:
        try:
            act(*arguments)
        except ValueError as error:
            problems.append(f'{where}{error}')

    for file, checksum in expert.checksums.items():
        check('', read_bytes, expert.folder / file, checksum)
    if base is None or problems:
        return problems
    where = f'{expert.folder}: '
    check(where, check_base, [expert], store.base_fingerprint)
    check(where, adapter_of, expert, base)
    if 'head' in expert.parts:
        check(where, check_classes, expert)
    for part, tensors in expert.parts.items():
        problems += _not_finite(tensors, expert.folder / file_of(part))
    return problems


def _not_finite(tensors: Mapping[str, Tensor], path: Path) -> List[str]:
    # a task of one image calibrates no limit of its gate, which is infinite
    limits = path.stem == 'prototypes'
    return [
        f'{path}: {key!r} holds values that are not finite'
        for key, value in tensors.items() if value.isnan().any()
        or value.isinf().any() and not (limits and value.dim() == 0)
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
    prototypes = merge_prototypes(
        [e.parts['prototypes'] for e in experts.values()], pooled)
    store.save(_merged_expert(experts, merged, adapter, prototypes))
    return merged


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


def _merged_expert(experts: Mapping[str, Expert], merged: Merged,
                   adapter: Adapter, prototypes: TensorDict) -> Expert:
    chosen = experts[merged.head]
    config = dict(
        chosen.configs['adapter'],
        # of scaling 1
        r=merged.rank,
        lora_alpha=merged.rank,
        use_rslora=False)
    norm = dict(norm=adapter.norm) if adapter.norm else {}
    weights = dict(adapter=adapter.lora, head=chosen.parts['head'], **norm)
    origin = [
        dict(expert=name, weight=weight, provenance=experts[name].provenance)
        for name, weight in merged.weights.items()
    ]
    return replace(
        chosen,
        name=merged.name,
        parts=dict(weights, prototypes=prototypes),
        configs=dict(chosen.configs, adapter=config),
        provenance=dict(
            merged_from=origin,
            rank=merged.rank,
            head_from=merged.head,
            weights_sha256=weights_checksum(weights)))


def list_experts(library: AnyPath) -> List[Dict[str, Any]]:
    """Every expert of a library, with all its files checked.

    Returns:
        list[dict]: One row of a table per expert; of a broken one, only
        ``expert`` and ``checksums``, which says what is wrong.

    Raises:
        ValueError: If there is no library.
    """
    store = open_library(library)
    rows, experts = [], []
    for name in store.names:
        broken = _problems(store, name)
        rows.append(dict(expert=name, checksums=(broken or ['ok'])[0]))
        if not broken:
            experts += store.open([name])
    # what an expert is called now, by the checksum of its weights
    names = {e.provenance.get('weights_sha256'): e.name for e in experts}
    facts = {e.name: _facts(e, names) for e in experts}
    return [dict(facts.get(row['expert'], {}), **row) for row in rows]


def show_expert(library: AnyPath, name: str) -> Dict[str, Any]:
    """All that the record of an expert tells, and the sizes of its files.

    Returns:
        dict: The fields of ``expert.json``, ``bytes`` by file, and
        ``parameters`` by part.

    Raises:
        ValueError: If there is no such expert, or its record was changed.
    """
    expert, = open_library(library).open([name])
    return dict(
        read_json(expert.folder / RECORD),
        bytes={
            file: (expert.folder / file).stat().st_size
            for file in expert.checksums
        },
        parameters=expert.num_values())


def _facts(expert: StoredExpert, names: Mapping[Any, str]) -> Dict[str, Any]:
    values = expert.num_values()
    sizes = [path.stat().st_size for path in expert.folder.iterdir()]
    return {
        'expert': expert.name,
        'classes': len(expert.classes),
        'rank': expert.configs.get('adapter', {}).get('r'),
        'parameters': sum(v for k, v in values.items() if k != 'prototypes'),
        'bytes': sum(sizes),
        'task data': _task_data(expert.provenance),
        'started from': _started_from(expert.provenance, names)
    }


def _task_data(provenance: Mapping[str, Any]) -> str:
    """What an expert was trained on, in a few words.

    Training writes the config of its dataset into the provenance, a merge
    its experts, an import its folder.
    """
    if 'merged_from' in provenance:
        parts = provenance['merged_from']
        return ' + '.join(f'{p["weight"]:.3g} {p["expert"]}' for p in parts)
    if 'imported_from' in provenance:
        return f'PEFT folder {provenance["imported_from"]}'
    config = provenance.get('train_dataset', {})
    return ' '.join(
        str(config[key])
        for key in ('type', 'data_root') if key in config) or 'unknown'


def _started_from(provenance: Mapping[str, Any], names: Mapping[Any,
                                                                str]) -> str:
    """Names of an expert's parents, as ``names`` calls them now."""
    for made in ('merged', 'imported'):
        if f'{made}_from' in provenance:
            return made
    if 'started_from' not in provenance:
        return 'unknown'
    return ', '.join(
        names.get(checksum, name)
        for name, checksum in provenance['started_from'].items()) or 'base'
