# SPDX-License-Identifier: Apache-2.0
"""What is in a library, for people to read."""
from __future__ import annotations

import ast
from dataclasses import dataclass
from inspect import signature
from typing import Any, Dict, List, Optional

from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from .edits import AnyPath, broken_files, open_library
from .expert_store import RECORD, ExpertStore, StoredExpert
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
    return [_summary(store, name) for name in store.names]


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
        for key, value in expert.prototypes.items()
    }
    return record


def _summary(store: ExpertStore, name: str) -> ExpertSummary:
    broken = broken_files(store, name)
    try:
        expert, = store.open([name])
        values = expert.num_values()
    except ValueError:
        return ExpertSummary(name, state=broken[0])
    return ExpertSummary(
        name=name,
        classes=len(expert.classes),
        rank=expert.lora_config.get('r'),
        parameters=sum(v for k, v in values.items() if k.endswith('params')),
        num_bytes=store.num_bytes(name),
        data=task_data(expert.provenance),
        init=start_of(expert),
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
    text = str(provenance.get('train_dataset', 'unknown'))
    try:
        config = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    if not isinstance(config, dict):
        return text
    return ' '.join(
        str(config[key]) for key in ('type', 'data_root') if key in config)


def start_of(expert: StoredExpert) -> str:
    """What an expert started from, as its run's config says.

    The config is read as text, never run.
    """
    provenance = expert.provenance
    if 'init_from' in provenance:
        return str(provenance['init_from'])
    for made in ('merged', 'imported'):
        if f'{made}_from' in provenance:
            return made
    try:
        tree = ast.parse(str(provenance.get('config', '')))
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return 'unknown'
    trained_as = provenance.get('trained_as', expert.name)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    if trained_as == _first_task(calls):
        return 'base'
    default = signature(ExpertSegmentor).parameters['init_from'].default
    return (_setting(calls, 'name', trained_as, None)
            or _setting(calls, 'type', 'ExpertSegmentor', default)
            or 'unknown')


def _first_task(calls: List[ast.Call]) -> Optional[str]:
    """Name of the task that a config learns first."""
    for keyword in (k for call in calls for k in call.keywords):
        if keyword.arg == 'tasks' and isinstance(keyword.value, ast.List):
            tasks = [t for t in keyword.value.elts if isinstance(t, ast.Call)]
            return _constant(tasks[0], 'name') if tasks else None
    return None


def _setting(calls: List[ast.Call], key: str, value: str,
             default: Optional[str]) -> Optional[str]:
    """``init_from`` beside ``key=value``; None where neither is."""
    for call in calls:
        if _constant(call, key) == value:
            return _constant(call, 'init_from') or default
    return None


def _constant(call: ast.Call, key: str) -> Optional[str]:
    """A text that a call gives by keyword."""
    for keyword in call.keywords:
        if keyword.arg == key and isinstance(keyword.value, ast.Constant):
            return str(keyword.value.value)
    return None
