# SPDX-License-Identifier: Apache-2.0
"""A few tiny frames of every data set, made once."""
from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest

from mmseg_mile.datasets.demo import make_demo_data


def _make(root: Path, **changes: object) -> dict:
    settings = dict(
        seed=3, num_train=2, num_val=2, size=(48, 96), num_processes=1)
    return make_demo_data(root, **{**settings, **changes})


@pytest.fixture(scope='session')
def make() -> Callable[..., dict]:
    """Makes the tiny data, with some parameters changed."""
    return _make


@pytest.fixture(scope='session')
def demo_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with tiny demo data; not to be changed."""
    root = tmp_path_factory.mktemp('demo')
    _make(root)
    return root
