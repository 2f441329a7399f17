# SPDX-License-Identifier: Apache-2.0
"""What every test shares: few threads, fixed seeds, no global state left."""
from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator

import cv2
import matplotlib
import numpy as np
import pytest
import torch
import torch.distributed
from mmengine.logging import MMLogger
from mmengine.utils import ManagerMixin

# tests/tiny.py: a stream that is learned in seconds.
pytest_plugins = ['tiny']

MARKERS = (
    'integration: a real Runner learns two tasks for a few iterations',
    'gpu: needs a CUDA device, skipped where there is none',
    'extras: needs an optional package, see make test-extras',
)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers and keep the libraries off each other's cores."""
    for marker in MARKERS:
        config.addinivalue_line('markers', marker)
    # The tensors of the tests are too small to share among threads, also in
    # the processes that tests start.
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    matplotlib.use('Agg')


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` on machines without one."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason='no CUDA device')
    for item in items:
        if item.get_closest_marker('gpu'):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Give every test the same random numbers, in whatever order it runs."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def fresh_global_state() -> Iterator[None]:
    """Forget what a Runner leaves behind.

    Loggers, visualizers, the message hub and the default scope of mmengine
    live in one table of instances per class; a second Runner of the same
    process would find those of the first. And the loop turns denormal
    numbers off.
    """
    yield
    clear_global_state()
    torch.set_flush_denormal(False)
    if (torch.distributed.is_available()
            and torch.distributed.is_initialized()):
        torch.distributed.destroy_process_group()


@pytest.fixture(scope='session')
def forget_runner() -> Callable[[], None]:
    """``forget_runner()`` makes room for a second Runner in one test."""
    return clear_global_state


def clear_global_state() -> None:
    """Forget the loggers, hubs and scopes of mmengine."""
    close_log_files()
    clear_instances(ManagerMixin)


def close_log_files() -> None:
    """Close the handlers of mmengine's loggers before they are forgotten."""
    for logger in MMLogger._instance_dict.values():
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()


def clear_instances(manager: type) -> None:
    """Empty the instance tables of a manager class and its subclasses."""
    manager._instance_dict.clear()
    for subclass in manager.__subclasses__():
        clear_instances(subclass)
