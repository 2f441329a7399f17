# SPDX-License-Identifier: Apache-2.0
"""Tasks over images that a test may spoil, and work dirs that were left."""
from __future__ import annotations

import logging
import shutil
from types import SimpleNamespace

import pytest
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from tiny import tiny_task

import mmseg_mile  # noqa: F401  registers the components
from mmseg_mile.engine.task_data import TaskData


@pytest.fixture
def root(tiny_data, tmp_path):
    """A copy of the images that a test may spoil."""
    return shutil.copytree(tiny_data, tmp_path / 'data')


@pytest.fixture
def open_tasks(root, quick):
    """``open_tasks(*tasks)`` opens tasks as the loop does."""
    init_default_scope('mmseg')

    def run(*tasks, max_iters=5, num_checked=16, **rehearsal):
        with quick():
            return TaskData(tasks, str(root), max_iters, num_checked,
                            **rehearsal)

    return run


@pytest.fixture
def day():
    return tiny_task('day')


@pytest.fixture
def builder():
    """The part of a runner that builds loaders."""
    return SimpleNamespace(
        build_dataloader=Runner.build_dataloader,
        seed=0,
        logger=logging.getLogger('test_engine'))


@pytest.fixture
def restore(quick, forget_runner):
    """``restore(cfg)``: number of tasks that the loop loads."""

    def run(cfg):
        forget_runner()
        with quick():
            return Runner.from_cfg(cfg).train_loop.restore()

    return run
