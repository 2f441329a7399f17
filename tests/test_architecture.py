# SPDX-License-Identifier: Apache-2.0
"""The layout of the project: who imports whom, and what is where."""
from __future__ import annotations

import ast
import re
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

# Room -> the other rooms it may import; a name without a folder is a module.
ALLOWED: dict[str, set[str]] = {
    'files': set(),
    'structures': set(),
    'adapters': {'structures'},
    'gates': {'structures', 'adapters'},
    'library': {'files', 'structures', 'adapters', 'gates'},
    'methods': {'structures', 'adapters', 'gates', 'library'},
    'datasets': {'structures'},
    'evaluation': {'files', 'structures'},
    'visualization': {'files', 'structures', 'evaluation'},
    'engine': {
        'files', 'structures', 'adapters', 'gates', 'library', 'methods',
        'datasets', 'evaluation'
    },
    'apis': {
        'files', 'structures', 'adapters', 'gates', 'library', 'methods',
        'datasets', 'evaluation', 'engine', 'visualization'
    },
}
TOP_LEVEL_MODULES = {'__init__.py', 'files.py', 'version.py'}
TOP_LEVEL_NAMES = {
    'setup.py', 'setup.cfg', 'constraints.txt', 'Makefile', 'LICENSE',
    'README.md', 'RESULTS.md', 'mmseg_mile', 'configs', 'tools', 'tests',
    'data'
}
MAX_FUNCTION_LINES = 60
# A small module whose only user stands beside it, and why it is one.
SMALL_NEIGHBOURS: dict[str, str] = {}


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


def room_of(path: Path) -> str:
    """Return the room of a module, '' for the package's own face."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix('.py')
    return first if first in ALLOWED else ''


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


def module_imports() -> dict[Path, set[Path]]:
    """Return, for each module, our modules that it imports from."""
    names = {}
    for path in MODULES:
        parts = path.relative_to(ROOT).with_suffix('').parts
        names['.'.join(parts).removesuffix('.__init__')] = path
    found = {}
    for path in MODULES:
        package = list(path.relative_to(ROOT).parent.parts)
        wanted = set()
        for name in imported_names(parse(path), package):
            for candidate in (name, name.rpartition('.')[0]):
                if names.get(candidate, path) != path:
                    wanted.add(names[candidate])
                    break
        found[path] = wanted
    return found


REGISTERED = registered_classes()
IMPORTS = module_imports()
by_file = pytest.mark.parametrize('path', MODULES, ids=name_of)


def test_modules_and_registered_classes_are_found():
    assert len(MODULES) > len(ALLOWED)
    assert REGISTERED
    assert sum(map(len, IMPORTS.values())) > len(MODULES)


@by_file
def test_imports_go_one_way(path):
    room = room_of(path)
    if not room:
        assert path.name in TOP_LEVEL_MODULES, (
            f'{name_of(path)}: modules live in one of {sorted(ALLOWED)}')
    allowed = ALLOWED[room] | {room} if room else set(ALLOWED)
    package = list(path.relative_to(ROOT).parent.parts)
    wrong = own_imports(parse(path), package) - allowed - {'version'}
    assert not wrong, (
        f'{name_of(path)} may import {sorted(allowed)}, not {sorted(wrong)}')


@pytest.mark.parametrize('source, package, expected', [
    ('import mmseg_mile.engine.hooks', 'mmseg_mile.methods', {'engine'}),
    ('from mmseg_mile.engine import A', 'mmseg_mile.methods', {'engine'}),
    ('from mmseg_mile import engine', 'mmseg_mile.methods', {'engine'}),
    ('from ..engine import A', 'mmseg_mile.methods', {'engine'}),
    ('from ...engine import A', 'mmseg_mile.methods.mile', {'engine'}),
    ('from .. import engine', 'mmseg_mile.methods', {'engine'}),
    ('from .heads import A', 'mmseg_mile.methods', {'methods'}),
    ('def f():\n    from ..apis import A', 'mmseg_mile.methods', {'apis'}),
    ('import mmseg_mile', 'mmseg_mile.methods', {''}),
    ('import torch, mmseg.models', 'mmseg_mile.methods', set()),
])  # yapf: disable
def test_every_form_of_import_is_seen(source, package, expected):
    assert own_imports(ast.parse(source), package.split('.')) == expected


def test_no_two_modules_import_each_other():
    pairs = {(name_of(path), name_of(other))
             for path, others in IMPORTS.items()
             for other in others if path in IMPORTS[other]
             and path.name != '__init__.py' and other.name != '__init__.py'}
    assert not pairs


def test_small_modules_are_not_the_private_part_of_a_neighbour():
    lonely = set()
    for path in MODULES:
        users = [
            other for other, used in IMPORTS.items()
            if path in used and other.name != '__init__.py'
        ]
        lines = len(path.read_text(encoding='utf-8').splitlines())
        if (lines < 120 and len(users) == 1 and users[0].parent == path.parent
                and path.name != '__init__.py'):
            lonely.add(name_of(path))
    assert lonely == set(SMALL_NEIGHBOURS), (
        'merge each into its only user, or give the reason')


@pytest.mark.parametrize(
    'registered', REGISTERED, ids=[item.name for item in REGISTERED])
def test_registered_class_is_named_by_a_config_or_a_test(registered):
    name = re.compile(rf'\b{registered.name}\b')
    named = [
        path for folder in (ROOT / 'configs', TESTS)
        for path in folder.rglob('*.py')
        if name.search(path.read_text(encoding='utf-8'))
    ]
    assert named, f'{registered.name}: no config and no test names it'


@by_file
def test_no_module_is_called_utils(path):
    names = [path.stem, *path.relative_to(PACKAGE).parts]
    assert not {'utils', 'util', 'helpers', 'common', 'misc'} & set(names)


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
