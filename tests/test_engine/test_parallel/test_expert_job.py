# SPDX-License-Identifier: Apache-2.0
"""The loop of one task; test_parallel_learning.py has what it learns."""
from __future__ import annotations

from types import SimpleNamespace

import pytest
from mmengine.config import ConfigDict

from mmseg_mile.engine.parallel import stream_loop


def runner_of(**train_cfg):
    return SimpleNamespace(
        cfg=ConfigDict(train_cfg=train_cfg, train_dataloader='template'))


def test_loop_gets_the_settings_of_the_stream_and_the_changes():
    runner = runner_of(type='IncrementalTaskLoop', max_iters=3, num_checked=9)
    loop = stream_loop(lambda runner, **settings: settings, runner,
                       num_checked=0)  # yapf: disable
    assert loop == dict(max_iters=3, dataloader='template', num_checked=0)
    assert runner._train_loop is loop
    assert runner.cfg.train_cfg.num_checked == 9


def test_config_without_a_stream_is_refused():
    with pytest.raises(ValueError, match="got 'IterBasedTrainLoop'"):
        stream_loop(dict, runner_of(type='IterBasedTrainLoop'))
