# SPDX-License-Identifier: Apache-2.0
"""What the uninterrupted run of the tiny stream left."""
from __future__ import annotations

import json

import numpy as np
import pytest
from mmengine.registry import init_default_scope


@pytest.fixture(scope='session')
def document(stream_run):
    return json.loads((stream_run.work_dir / 'results.json').read_text())


@pytest.fixture(scope='session')
def miou(document):
    """Score matrices with NaN for null."""
    return {
        kind: np.array(rows, dtype=float)
        for kind, rows in document['miou'].items()
    }


@pytest.fixture(scope='session')
def cross(stream_run):
    path = stream_run.work_dir / 'cross_expert_miou.json'
    return json.loads(path.read_text())


@pytest.fixture
def loop(stream_run):
    init_default_scope('mmseg')
    return stream_run.runner.train_loop
