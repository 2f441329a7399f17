# SPDX-License-Identifier: Apache-2.0
"""Configs as JSON values, which run no code when they are read."""
from __future__ import annotations

import inspect
import math
from importlib import import_module
from typing import Any, Callable, Dict, Iterator, Mapping, Set

import mmengine.registry
from mmengine.config import Config
from mmengine.registry import Registry
from mmengine.utils import get_object_from_string

import mmseg.registry

# What JSON lacks is an object of one such key.
_MARKED: Dict[str, Callable[[Any], Any]] = {
    '__tuple__': tuple,
    '__dict__': dict,
    '__float__': float
}
# Packages whose registered classes are named as `package.Class`.
_OWN_SCOPES = ('', 'mmseg', 'mmengine')
_OTHER_SCOPES = ('mmdet', 'mmpretrain', 'mmcls')


def name_classes(value: Any) -> Any:
    """A copy of a config in which classes go by their registered names.

    mmengine also takes a class, as configs in pure Python style import it,
    or its import path. Classes that no registry holds stay as they are.

    Args:
        value (Any): The config, or a part of it.
    """
    if isinstance(value, Config):
        # what a config imports is no field of it
        fields = {key: value[key] for key in value.to_dict()}
        return Config(name_classes(fields), value.text, value.filename)
    if isinstance(value, Mapping):
        return {
            key:
            _registered_name(item) if key == 'type' else name_classes(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(map(name_classes, value))
    return value


def _registered_name(kind: Any) -> Any:
    found = get_object_from_string(kind) if isinstance(
        kind, str) and '.' in kind else kind
    if not inspect.isclass(found):
        return kind
    for registry in vars(mmseg.registry).values():
        if isinstance(registry, Registry):
            for each in filter(None, (registry, registry.parent)):
                for name, known in each.module_dict.items():
                    # mmseg may have a class of its own by that name
                    if known is found and registry.get(name) is found:
                        return name
    return kind


def to_json(value: Any) -> Any:
    """Plain JSON values of a config or a part of it.

    Tuples, dicts with keys that are no strings, and infinities are marked,
    so that :func:`from_json` gives them back. Classes become their names.

    Args:
        value (Any): The config.
    """
    if isinstance(value, Mapping):
        items = [[key, to_json(item)] for key, item in value.items()]
        if all(isinstance(key, str) for key in value):
            return dict(items)
        return {'__dict__': items}
    if isinstance(value, tuple):
        return {'__tuple__': [to_json(item) for item in value]}
    if isinstance(value, list):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {'__float__': repr(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, '__name__', type(value).__name__)


def from_json(value: Any) -> Any:
    """Inverse of :func:`to_json`."""
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: from_json(item) for key, item in value.items()}
    marker = next(iter(found), '')
    return _MARKED[marker](found[marker]) if marker in _MARKED else found


def load_config(values: Any, where: Any) -> Config:
    """A config from the JSON values that a library has of it.

    A library may come from anyone, and mmengine builds whatever Python
    object a ``type`` names; here each must be the name of a registered
    class. Installed modules that the config names in ``custom_imports`` are
    imported, because they register classes.

    Args:
        values (Any): Of :func:`to_json`.
        where (Any): File that has them, for messages.

    Raises:
        ValueError: If they are no config, name a class that is not
            registered, or a module that is not installed.
    """
    try:
        config = Config(from_json(values))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f'{where} holds no config ({error}): name a config '
                         'file that you trust as config') from error
    _import_modules(config.get('custom_imports') or {}, where)
    check_types(config.to_dict(), where)
    return config


def check_types(config: Any, where: Any) -> None:
    """Refuse a config that could name any code.

    A registry would import a name that it does not hold as a module, and
    call what it finds there.

    Args:
        config (Any): A config, or a part of it.
        where (Any): File that has it, for messages.

    Raises:
        ValueError: If a ``type`` is no name of a registered class.
    """
    known = _registered_names()
    for name in _types(config):
        scope, _, key = str(name).rpartition('.')
        if not (isinstance(name, str) and
                (scope in _OWN_SCOPES and key in known
                 or scope in _OTHER_SCOPES and key.isidentifier())):
            raise ValueError(
                f'{where} names the type {name!r}, which no registry of mmseg '
                'holds, so that it could be any code: import the package '
                'that registers it (custom_imports), or, if you trust it, '
                'name its config file as config')


def _types(config: Any) -> Iterator[Any]:
    """Every ``type`` of a config, at any depth."""
    if isinstance(config, dict):
        if '_scope_' in config and config['_scope_'] not in _OWN_SCOPES:
            yield f'{config["_scope_"]}.{config.get("type")}.'
        if 'type' in config:
            yield config['type']
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for value in config:
            yield from _types(value)


def _registered_names() -> Set[str]:
    names: Set[str] = set()
    for module in (mmseg.registry, mmengine.registry):
        for registry in vars(module).values():
            if isinstance(registry, Registry):
                # mmseg's own classes register when they are first asked for
                registry.import_from_location()
                names.update(registry.module_dict)
    return names


def _import_modules(custom: Mapping[str, Any], where: Any) -> None:
    for name in custom.get('imports', []):
        try:
            import_module(name)
        except ImportError as error:
            if not custom.get('allow_failed_imports'):
                raise ValueError(
                    f'{where} was made with the module {name!r}, which '
                    f'cannot be imported here ({error}): install it, or put '
                    'its folder on PYTHONPATH') from error
