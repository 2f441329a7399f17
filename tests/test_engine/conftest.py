# SPDX-License-Identifier: Apache-2.0
"""Tasks over images that a test may spoil."""
from __future__ import annotations

import shutil

import pytest
from mmengine.registry import init_default_scope
from tiny import tiny_task

import mmseg_mile.datasets  # noqa: F401  registers the components
from mmseg_mile.engine.task_data import TaskData


@pytest.fixture
def root(tiny_data, tmp_path):
    """A copy of the images that a test may spoil."""
    return shutil.copytree(tiny_data, tmp_path / 'data')


@pytest.fixture
def open_tasks(root, quick):
    """``open_tasks(*tasks)`` opens tasks as the loop does."""
    init_default_scope('mmseg')

    def run(*tasks, max_iters=5, num_checked=16):
        with quick():
            return TaskData(tasks, str(root), max_iters, num_checked)

    return run


@pytest.fixture
def day():
    return tiny_task('day')
