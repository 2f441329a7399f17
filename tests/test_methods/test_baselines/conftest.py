# SPDX-License-Identifier: Apache-2.0
"""Models are built here without a Runner, which would set the scope."""
import copy

import pytest
from mmengine.registry import init_default_scope


@pytest.fixture(autouse=True)
def mmseg_scope():
    init_default_scope('mmseg')


@pytest.fixture(scope='module')
def short_stream(tiny_config):
    """``short_stream(model, work_dir)``: a snapshot after each iteration."""

    def make(model, work_dir, **changes):
        settings = dict(
            train_cfg__max_iters=3, train_cfg__checkpoint_interval=1)
        cfg = tiny_config(work_dir, **{**settings, **changes})
        cfg.model = copy.deepcopy(model)
        return cfg

    return make


@pytest.fixture(scope='module')
def stop_and_resume(learn):
    """``stop_and_resume(config, work_dir, hook)``; the hook stops it."""

    def run(config, work_dir, hook):
        with pytest.raises(KeyboardInterrupt):
            learn(config(work_dir), hook)
        return learn(config(work_dir, resume=True))

    return run
