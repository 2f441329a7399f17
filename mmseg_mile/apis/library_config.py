# SPDX-License-Identifier: Apache-2.0
"""The config that a library carries, read without running any of it."""
from __future__ import annotations

import ast
import copy
from importlib import import_module
from typing import Any, Dict, List, Sequence

from mmengine.config import Config

from mmseg_mile.experts import StoredExpert
from mmseg_mile.experts.library_edits import TRAINED_AS
from .image_prototypes import prediction_pipeline

# What would load or download weights that the library replaces.
_WEIGHT_SOURCES = ('init_cfg', 'pretrained')
# Packages whose registered classes are named as `package.Class`.
_SCOPES = ('mmseg', 'mmdet', 'mmpretrain', 'mmcls')


def read_config(text: str) -> Config:
    """A resolved config from its text.

    A library may come from anyone, and a config file is a program: mmengine
    runs it, and builds whatever Python object a ``type`` with dots names.
    Here only values are read, and a ``type`` must be a registered name.

    Args:
        text (str): As mmengine's ``Config.pretty_text`` writes it.

    Raises:
        ValueError: If it holds anything but values, or a ``type`` that is no
            registered name.
    """
    try:
        values = dict(map(_assignment, ast.parse(text).body))
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(
            f'the config of the library is not one of plain values ({error})'
            ': name a config file that you trust as config') from error
    check_types(values)
    return Config(values)


def library_config(experts: Sequence[StoredExpert]) -> Config:
    """The config of the first expert that has one.

    Args:
        experts (Sequence[StoredExpert]): Merged and imported ones have none.

    Raises:
        ValueError: If none has one.
    """
    for expert in experts:
        if 'config' in expert.provenance:
            return read_config(str(expert.provenance['config']))
    raise ValueError(
        f'none of the experts {[e.name for e in experts]} says which model '
        'it belongs to, they were merged or imported: name the config that '
        'the library was trained with as config')


def model_to_load(cfg: Config) -> Dict[str, Any]:
    """A copy of ``cfg.model`` that asks for no weights of its own."""
    return _without_weights(copy.deepcopy(cfg.model))


def loading_ways(experts: Sequence[StoredExpert]) -> Dict[str, List[Any]]:
    """The steps from a file to the model, of each expert that tells.

    Args:
        experts (Sequence[StoredExpert]): Each may come from a run of its
            own.
    """
    ways = {}
    for expert in experts:
        if 'config' in expert.provenance:
            cfg = read_config(str(expert.provenance['config']))
            trained_as = expert.provenance.get(TRAINED_AS, expert.name)
            ways[expert.name] = prediction_pipeline(cfg, trained_as)
    return ways


def import_custom_modules(cfg: Config) -> None:
    """Import what a config says registers its components.

    Raises:
        ValueError: If a module is not installed here.
    """
    custom = cfg.get('custom_imports') or {}
    for name in custom.get('imports', []):
        try:
            import_module(name)
        except ImportError as error:
            if custom.get('allow_failed_imports'):
                continue
            raise ValueError(
                f'the library was made with the module {name!r}, which '
                f'cannot be imported here ({error}): install it, or put its '
                'folder on PYTHONPATH') from error


class _DictCalls(ast.NodeTransformer):
    """``dict(a=1)`` becomes ``{'a': 1}``."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        named = all(keyword.arg is not None for keyword in node.keywords)
        if (isinstance(node.func, ast.Name) and node.func.id == 'dict'
                and not node.args and named):
            return ast.Dict(
                keys=[ast.Constant(k.arg) for k in node.keywords],
                values=[k.value for k in node.keywords])
        return node


def _assignment(statement: ast.stmt) -> Any:
    """Name and value of ``name = value``."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
        if isinstance(target, ast.Name):
            return target.id, ast.literal_eval(_DictCalls().visit(
                statement.value))
    raise ValueError(f'line {statement.lineno} assigns no value to a name')


def check_types(value: Any) -> None:
    """Refuse a config of a library that could name any code.

    Args:
        value (Any): The config, or a part of it.

    Raises:
        ValueError: If a ``type`` is no name of a registered class.
    """
    if isinstance(value, dict):
        name = value.get('type')
        scope, dot, rest = str(name).partition('.')
        if '_scope_' in value or (dot and
                                  (scope not in _SCOPES or '.' in rest)):
            raise ValueError(
                f'the config of the library names {name!r} as a type, which '
                'is no registered class but could be any code: if you trust '
                'it, name its config file as config')
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            check_types(item)


def _without_weights(value: Any) -> Any:
    if isinstance(value, dict):
        for key in _WEIGHT_SOURCES:
            value.pop(key, None)
        for item in value.values():
            _without_weights(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _without_weights(item)
    return value
