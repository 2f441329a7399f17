# SPDX-License-Identifier: Apache-2.0
"""What is in a library, for people to read."""
from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional

from mmseg_mile.structures import Expert
from .edits import AnyPath, broken_files, open_library
from .expert_store import RECORD, ExpertStore
from .files import read_json


@dataclass
class ExpertSummary:
    """One line of a library's table; None where a broken expert hides it.

    Args:
        name (str): The expert.
        classes (int): Size of its label space.
        rank (int): Of its adapter.
        parameters (int): Of adapter, head and norm layers.
        num_bytes (int): On disk.
        data (str): What it was trained on.
        init (str): What it started from.
        state (str): 'ok', or what is wrong.
    """
    name: str
    classes: Optional[int] = None
    rank: Optional[int] = None
    parameters: Optional[int] = None
    num_bytes: Optional[int] = None
    data: Optional[str] = None
    init: Optional[str] = None
    state: str = 'ok'


def list_experts(library: AnyPath) -> List[ExpertSummary]:
    """Every expert of a library, with all its files checked.

    Raises:
        ValueError: If there is no library.
    """
    store = open_library(library)
    names: Dict[str, str] = {}
    for name in store.names:
        with contextlib.suppress(ValueError):
            expert, = store.open([name])
            names[expert.provenance.get('weights_sha256', '')] = name
    return [_summary(store, name, names) for name in store.names]


def show_expert(library: AnyPath, name: str) -> Dict[str, Any]:
    """All that the record of an expert tells, and what its files hold.

    Returns:
        dict: The fields of ``expert.json``; ``files`` maps each name to its
        bytes and checksum.

    Raises:
        ValueError: If there is no such expert, or its record was changed.
    """
    store = open_library(library)
    expert, = store.open([name])
    record = read_json(expert.folder / RECORD)
    record['files'] = {
        file:
        dict(bytes=(expert.folder / file).stat().st_size, sha256=checksum)
        for file, checksum in expert.checksums.items()
    }
    record['parameters'] = expert.num_values()
    record['prototypes'] = {
        key: list(value.shape)
        for key, value in expert.parts.get('prototypes', {}).items()
    }
    return record


def _summary(store: ExpertStore, name: str,
             names: Mapping[str, str]) -> ExpertSummary:
    broken = broken_files(store, name)
    try:
        expert, = store.open([name])
        values = expert.num_values()
    except ValueError:
        return ExpertSummary(name, state=broken[0])
    return ExpertSummary(
        name=name,
        classes=len(expert.classes),
        rank=expert.configs.get('adapter', {}).get('r'),
        parameters=sum(v for k, v in values.items() if k != 'prototypes'),
        num_bytes=store.num_bytes(name),
        data=task_data(expert.provenance),
        init=started_from(expert, names),
        state=broken[0] if broken else 'ok')


def task_data(provenance: Dict[str, Any]) -> str:
    """What an expert was trained on, in a few words.

    Args:
        provenance (dict): Of the expert. Training writes the config of its
            dataset there, a merge its experts, an import its folder.
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


def started_from(expert: Expert, names: Mapping[str, str]) -> str:
    """What an expert started from, as its record says.

    Args:
        expert (Expert): The expert.
        names (Mapping[str, str]): By the checksum of its weights, what an
            expert of the library is called now.
    """
    for made in ('merged', 'imported'):
        if f'{made}_from' in expert.provenance:
            return made
    parents = expert.provenance.get('started_from')
    if parents is None:
        return 'unknown'
    return ', '.join(
        names.get(checksum, name)
        for name, checksum in parents.items()) or 'base'
