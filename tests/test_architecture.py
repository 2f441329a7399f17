# SPDX-License-Identifier: Apache-2.0
"""The layout of the project: who imports whom, and what is where."""
from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'mmseg_mile'
TESTS = ROOT / 'tests'
MODULES = sorted(PACKAGE.rglob('*.py'))

# Subpackage -> the other subpackages it may import.
ALLOWED: dict[str, set[str]] = {
    'structures': set(),
    'datasets': {'structures'},
    'evaluation': {'structures'},
    'experts': {'structures'},
    'models': {'structures', 'experts'},
    'engine': {'structures', 'datasets', 'evaluation', 'experts', 'models'},
    'baselines': {'structures', 'experts', 'models'},
    'visualization': {'structures', 'evaluation'},
    'reports': {'structures', 'evaluation', 'visualization'},
    'apis': {
        'structures', 'datasets', 'evaluation', 'experts', 'models', 'engine',
        'baselines', 'visualization', 'reports'
    },
    'serving': {'visualization', 'reports', 'apis'},
    'benchmarks': {
        'structures', 'datasets', 'evaluation', 'experts', 'models', 'engine',
        'baselines', 'visualization', 'reports', 'apis'
    },
}
TOP_LEVEL_MODULES = {'__init__.py', 'version.py'}
TOP_LEVEL_NAMES = {
    'setup.py', 'setup.cfg', 'constraints.txt', 'Makefile', 'LICENSE',
    'README.md', 'mmseg_mile', 'configs', 'tools', 'tests', 'data'
}
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60


class RegisteredClass(NamedTuple):
    """A class that a config can name."""

    path: Path
    name: str


@lru_cache(maxsize=None)
def parse(path: Path) -> ast.Module:
    """Parse one module, once per session."""
    return ast.parse(path.read_text(encoding='utf-8'), filename=str(path))


def name_of(path: Path) -> str:
    """Name a file the way a reader would look for it."""
    return path.relative_to(ROOT).as_posix()


def subpackage_of(path: Path) -> str:
    """Return the subpackage of a module, '' at the top of the package."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ''


def imported_names(tree: ast.Module, package: list[str]) -> Iterator[str]:
    """Yield every dotted name that a module imports, at any depth.

    Args:
        tree (ast.Module): The parsed module.
        package (list[str]): The package of the module, for relative imports.

    Yields:
        str: Absolute names; ``from a import b`` yields ``a.b``.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1]
            parts = (base if node.level else []) + ([node.module]
                                                    if node.module else [])
            for alias in node.names:
                yield '.'.join(parts + [alias.name])


def own_imports(tree: ast.Module, package: list[str]) -> set[str]:
    """Return the first name below ``mmseg_mile`` of each of our imports."""
    names = (name.split('.') for name in imported_names(tree, package))
    return {
        parts[1] if len(parts) > 1 else ''
        for parts in names if parts[0] == PACKAGE.name
    }


def is_registration(decorator: ast.expr) -> bool:
    """Tell ``@REGISTRY.register_module(...)`` from other decorators."""
    if isinstance(decorator, ast.Call):
        decorator = decorator.func
    return (isinstance(decorator, ast.Attribute)
            and decorator.attr == 'register_module')


def registered_classes() -> list[RegisteredClass]:
    """Return every class of the package that enters a registry."""
    return [
        RegisteredClass(path, node.name) for path in MODULES
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ClassDef) and any(
            is_registration(item) for item in node.decorator_list)
    ]


def files_of_the_project() -> list[str]:
    """Return the paths that git tracks or would track."""
    answer = subprocess.run(
        ['git', 'ls-files', '--cached', '--others', '--exclude-standard'],
        cwd=ROOT,
        capture_output=True,
        text=True)
    if answer.returncode != 0:
        pytest.skip(f'not a git checkout: {answer.stderr.strip()}')
    return [path for path in answer.stdout.splitlines()
            if (ROOT / path).exists()]  # yapf: disable


REGISTERED = registered_classes()
by_file = pytest.mark.parametrize('path', MODULES, ids=name_of)
by_class = pytest.mark.parametrize(
    'registered', REGISTERED, ids=[item.name for item in REGISTERED])


def test_modules_and_registered_classes_are_found():
    assert len(MODULES) > len(ALLOWED)
    assert REGISTERED


@by_file
def test_imports_go_one_way(path):
    owner = subpackage_of(path)
    if not owner:
        assert path.name in TOP_LEVEL_MODULES, (
            f'{name_of(path)}: modules live in one of {sorted(ALLOWED)}')
    assert owner in ALLOWED or not owner, (
        f'{name_of(path)}: give {owner!r} its place in ALLOWED')
    allowed = ALLOWED[owner] | {owner} if owner else set(ALLOWED)
    package = list(path.relative_to(ROOT).parent.parts)
    wrong = own_imports(parse(path), package) - allowed - {'version'}
    assert not wrong, (
        f'{name_of(path)} may import {sorted(allowed)}, not {sorted(wrong)}')


@pytest.mark.parametrize('source, package, expected', [
    ('import mmseg_mile.engine.loops', 'mmseg_mile.models', {'engine'}),
    ('from mmseg_mile.engine import A', 'mmseg_mile.models', {'engine'}),
    ('from mmseg_mile import engine', 'mmseg_mile.models', {'engine'}),
    ('from ..engine import A', 'mmseg_mile.models', {'engine'}),
    ('from ...engine import A', 'mmseg_mile.models.gates', {'engine'}),
    ('from .. import engine', 'mmseg_mile.models', {'engine'}),
    ('from .base_gate import A', 'mmseg_mile.models.gates', {'models'}),
    ('def f():\n    from ..apis import A', 'mmseg_mile.models', {'apis'}),
    ('import mmseg_mile', 'mmseg_mile.models', {''}),
    ('import torch, mmseg.models', 'mmseg_mile.models', set()),
])  # yapf: disable
def test_every_form_of_import_is_seen(source, package, expected):
    assert own_imports(ast.parse(source), package.split('.')) == expected


@by_class
def test_registered_class_lives_in_the_file_of_its_name(registered):
    wanted = registered.name.lower()
    stem = registered.path.stem.replace('_', '')
    assert stem in (wanted, wanted.removesuffix('dataset')), (
        f'{registered.name} is in {name_of(registered.path)}')


@by_class
def test_registered_class_has_a_test_file(registered):
    folder = TESTS / f'test_{subpackage_of(registered.path)}'
    wanted = f'test_{registered.path.stem}.py'
    assert list(folder.rglob(wanted)), (
        f'{registered.name}: no {wanted} below {name_of(folder)}')


@by_file
def test_no_module_is_called_utils(path):
    names = [path.stem, *path.relative_to(PACKAGE).parts]
    assert not {'utils', 'util', 'helpers', 'common', 'misc'} & set(names)


@by_file
def test_files_stay_small(path):
    lines = len(path.read_text(encoding='utf-8').splitlines())
    assert lines <= MAX_FILE_LINES


@by_file
def test_functions_stay_small(path):
    functions = (
        node for node in ast.walk(parse(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
    too_long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in functions
        if node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    }
    assert not too_long


def test_top_level_holds_only_what_is_agreed():
    top_level = {path.split('/')[0] for path in files_of_the_project()}
    visible = {name for name in top_level if not name.startswith('.')}
    assert {'setup.py', 'mmseg_mile', 'tests'} <= visible
    assert not visible - TOP_LEVEL_NAMES
