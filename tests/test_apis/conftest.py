# SPDX-License-Identifier: Apache-2.0
"""A library of experts over a tiny backbone, in the test's folder."""
from __future__ import annotations

import copy
import shutil
from collections.abc import Callable

import pytest
import torch
from mmengine.registry import init_default_scope
from tiny import TinyLibrary, make_library
from torch import Tensor

from mmseg_mile.library.expert_store import ExpertStore


@pytest.fixture(scope='session')
def pristine(tmp_path_factory) -> Callable[[str], TinyLibrary]:
    """``pristine(kind)``: made once; look, do not touch."""
    made: dict[str, TinyLibrary] = {}

    def get(kind: str) -> TinyLibrary:
        if kind not in made:
            made[kind] = make_library(
                kind,
                tmp_path_factory.mktemp(kind) / 'library')
        init_default_scope('mmseg')
        return made[kind]

    return get


@pytest.fixture(params=['cnn', 'mit'])
def library(request, pristine, copied) -> TinyLibrary:
    """A library of the test's own, once of a CNN and once of a MiT."""
    return copied(pristine(request.param))


@pytest.fixture
def cnn(pristine, copied) -> TinyLibrary:
    """A library of the test's own."""
    return copied(pristine('cnn'))


@pytest.fixture
def copied(tmp_path) -> Callable[[TinyLibrary], TinyLibrary]:
    """Copy a library into the test's folder."""

    def copy_library(whole: TinyLibrary) -> TinyLibrary:
        folder = shutil.copytree(whole.store.root, tmp_path / 'library')
        return whole._replace(
            store=ExpertStore(folder), config=copy.deepcopy(whole.config))

    return copy_library


@pytest.fixture
def image() -> Tensor:
    """One normalised image."""
    return torch.randn(1, 3, 64, 96)
