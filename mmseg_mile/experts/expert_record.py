# SPDX-License-Identifier: Apache-2.0
"""The fields of ``expert.json`` and ``library.json``, and their checks."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional

from mmseg.registry import MODELS, TASK_UTILS, WEIGHT_INITIALIZERS
from mmseg_mile.structures import check_task_name
from .files import read_json

EXPERT_SCHEMA = 1
LIBRARY_SCHEMA = 2
ADAPTER_CONFIG = 'adapter_config.json'
ADAPTER = 'adapter_model.safetensors'
HEAD = 'head.safetensors'
NORM = 'norm.safetensors'
PROTOTYPES = 'prototypes.safetensors'
BASE = 'base.safetensors'
RECORD = 'expert.json'

_OWNED = (ADAPTER_CONFIG, ADAPTER, HEAD, PROTOTYPES)
_REGISTRIES = (MODELS, TASK_UTILS, WEIGHT_INITIALIZERS)
# Scopes whose registries a head may name a component of.
_OWN_SCOPES = ('', 'mmseg', 'mmengine')
_OTHER_SCOPES = ('mmdet', 'mmpretrain')
_LORA_KEYS = {'r', 'lora_alpha', 'lora_dropout', 'use_rslora'}
_Check = Callable[[Any], bool]


def read_expert_record(folder: Path, checksum: str) -> Dict[str, Any]:
    """Read and check the ``expert.json`` of a folder.

    Args:
        folder (Path): Of the expert.
        checksum (str): SHA-256 of the record when it was written.

    Raises:
        ValueError: If it is missing, changed, or holds what no expert has;
            names the file and the field.
    """
    path = folder / RECORD
    record = read_json(path, checksum)
    _check_fields(path, record, _EXPERT, f'expert of schema {EXPERT_SCHEMA}')
    if record['name'] != folder.name:
        raise ValueError(f'{path} belongs to expert {record["name"]!r}, '
                         f'not to folder {folder.name!r}')
    for name in _types(record['head_config']):
        if not _is_registered(name):
            raise ValueError(
                f'{path}: head_config names the type {name!r}, which no '
                'registry of mmseg holds and which is not looked for '
                'elsewhere: import the package that registers it (add it to '
                'custom_imports).')
    return record


def read_library_index(path: Path) -> Dict[str, Any]:
    """Read and check a ``library.json``.

    Raises:
        ValueError: As :func:`read_expert_record`.
    """
    index = read_json(path)
    _check_fields(path, index, _LIBRARY, f'library of schema {LIBRARY_SCHEMA}')
    listed = {BASE, *(f'{name}/{RECORD}' for name in index['experts'])}
    if set(index['files']) != listed:
        raise ValueError(f'{path}: files must list {sorted(listed)}, got '
                         f'{sorted(index["files"])}')
    return index


def _check_fields(path: Path, content: Dict[str, Any],
                  checks: Dict[str, _Check], what: str) -> None:
    if set(content) != set(checks) or not checks['schema'](content['schema']):
        raise ValueError(f'{path} is no {what}: it must have exactly the '
                         f'fields {sorted(checks)}')
    wrong = next((k for k, check in checks.items() if not check(content[k])),
                 None)
    if wrong is not None:
        raise ValueError(f'{path}: {wrong} holds {content[wrong]!r}, which no '
                         f'{what} has: restore the file from a copy.')


def _types(config: Any) -> Iterator[Any]:
    """Every ``type`` of a config, at any depth."""
    if isinstance(config, dict):
        if 'type' in config:
            yield config['type']
        for value in config.values():
            yield from _types(value)
    elif isinstance(config, list):
        for value in config:
            yield from _types(value)


def _is_registered(name: Any) -> bool:
    """Whether a registry holds a name.

    A registry would import any other name as a module and call what it finds
    there.
    """
    if not isinstance(name, str):
        return False
    scope, _, key = name.rpartition('.')
    if scope in _OTHER_SCOPES:
        return key.isidentifier()
    return scope in _OWN_SCOPES and any(
        key in each.module_dict for registry in _REGISTRIES
        for each in _with_parents(registry))


def _with_parents(registry: Optional[Any]) -> Iterator[Any]:
    while registry is not None:
        yield registry
        registry = registry.parent


def _is_name(value: Any) -> bool:
    try:
        check_task_name(value)
    except ValueError:
        return False
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are(check: _Check, value: Any, least: int = 0) -> bool:
    return isinstance(value, list) and len(value) >= least and all(
        map(check, value))


def _are_different(check: _Check, value: Any, least: int = 0) -> bool:
    return _are(check, value, least) and len(set(value)) == len(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_colour(value: Any) -> bool:
    return _are(_is_whole, value) and len(value) == 3


def _is_lora_config(value: Any) -> bool:
    return isinstance(value, dict) and set(value) <= _LORA_KEYS and (
        _is_whole(value.get('r')) and value['r'] > 0
        and _is_number(value.get('lora_alpha'))
        and all(isinstance(v, (int, float)) for v in value.values()))


def _are_digests(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(v, str) and re.fullmatch('[0-9a-f]{64}', v)
        for v in value.values())


def _are_owned(value: Any) -> bool:
    return _are_digests(value) and set(_OWNED) <= set(value) <= {*_OWNED, NORM}


_EXPERT: Dict[str, _Check] = dict(
    schema=lambda v: _is_whole(v) and v == EXPERT_SCHEMA,
    name=_is_name,
    classes=lambda v: _are_different(_is_text, v, 1),
    palette=lambda v: _are(_is_colour, v),
    lora_config=_is_lora_config,
    head_config=lambda v: isinstance(v, dict),
    base_fingerprint=_is_text,
    provenance=lambda v: isinstance(v, dict),
    files=_are_owned)
_LIBRARY: Dict[str, _Check] = dict(
    schema=lambda v: _is_whole(v) and v == LIBRARY_SCHEMA,
    base_fingerprint=_is_text,
    experts=lambda v: _are_different(_is_name, v),
    files=_are_digests)
