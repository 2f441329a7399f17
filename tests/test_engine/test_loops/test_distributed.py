# SPDX-License-Identifier: Apache-2.0
"""A stream in a process group: the model is wrapped anew for each task."""
from __future__ import annotations

import socket

import pytest
import torch
import torch.distributed
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel

pytestmark = pytest.mark.integration


class Wrappers(Hook):
    """Keeps the model that each task is trained with."""

    def __init__(self):
        self.models = []

    def before_train(self, runner):
        self.models.append(runner.model)


@pytest.fixture(scope='module')
def wrappers():
    return Wrappers()


@pytest.fixture(scope='module')
def run(learn, tiny_config, tmp_path_factory, wrappers):
    """The first two tasks in a group of one process without a GPU."""
    if not torch.distributed.is_gloo_available():
        pytest.skip('torch has no gloo')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    cfg = tiny_config(
        tmp_path_factory.mktemp('distributed') / 'run',
        ('day', 'night'),
        launcher='pytorch',
        model_wrapper_cfg=dict(
            type='MMDistributedDataParallel', device_ids=None),
        env_cfg__dist_cfg=dict(backend='gloo'),
        # A synchronised norm layer trains on GPUs only.
        model__backbone__backbone__norm_cfg__type='BN',
        model__decode_head__norm_cfg__type='BN')
    group = dict(
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=port,
        RANK=0,
        LOCAL_RANK=0,
        WORLD_SIZE=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, 'set_device', lambda device: None)
        for name, value in group.items():
            patch.setenv(name, str(value))
        try:
            done = learn(cfg, wrappers)
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
    return done


def test_each_task_has_a_wrapper_of_its_own(run, wrappers):
    assert len(wrappers.models) == 2
    assert wrappers.models[0] is not wrappers.models[1]
    for model in wrappers.models:
        assert isinstance(model, MMDistributedDataParallel)


def test_model_is_bare_between_tasks(run):
    assert type(run.runner.model).__name__ == 'ExpertSegmentor'


@pytest.mark.parametrize('task', ['day', 'night'])
@pytest.mark.parametrize('name', ['adapter_model', 'norm', 'head'])
def test_experts_equal_those_of_a_plain_run(run, stream_run, task, name):
    mine, theirs = ((folder.work_dir / 'library' / task /
                     f'{name}.safetensors').read_bytes()
                    for folder in (run, stream_run))
    assert mine == theirs
