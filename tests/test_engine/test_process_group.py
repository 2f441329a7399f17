# SPDX-License-Identifier: Apache-2.0
"""Joining other processes on a machine without a GPU."""
from __future__ import annotations

import os
import socket

import pytest
import torch.distributed
from mmengine.config import Config

from mmseg_mile.engine import process_group
from mmseg_mile.engine.process_group import use_cpu_group

NAMES = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT',
         'SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID',
         'OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE',
         'OMPI_COMM_WORLD_LOCAL_RANK')


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No GPU, no launcher, and a free port."""
    monkeypatch.setattr(process_group, 'get_device', lambda: 'cpu')
    for name in NAMES:
        # set before it is deleted, so that what a test leaves is undone
        monkeypatch.setenv(name, '')
        monkeypatch.delenv(name)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        monkeypatch.setenv('MASTER_PORT', str(free.getsockname()[1]))
    return monkeypatch


def launched(environment, **variables):
    for name, value in variables.items():
        environment.setenv(name, value)


def test_a_single_process_is_left_alone():
    cfg = Config(dict(launcher='none'))
    use_cpu_group(cfg)
    assert dict(cfg) == dict(launcher='none')
    assert not torch.distributed.is_initialized()


def test_processes_with_gpus_are_left_to_mmengine(monkeypatch):
    monkeypatch.setattr(process_group, 'get_device', lambda: 'cuda')
    cfg = Config(dict(launcher='pytorch'))
    use_cpu_group(cfg)
    assert 'model_wrapper_cfg' not in cfg
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize('launcher, names', [
    ('pytorch', NAMES[:3]),
    ('slurm', NAMES[5:8]),
    ('mpi', NAMES[8:]),
])
def test_processes_without_gpus_join_with_gloo(environment, launcher, names):
    launched(
        environment,
        MASTER_ADDR='127.0.0.1',
        **dict(zip(names, ('0', '1', '0'))))
    cfg = Config(dict(launcher=launcher))
    use_cpu_group(cfg)
    assert torch.distributed.get_backend() == 'gloo'
    assert os.environ['LOCAL_RANK'] == '0'
    assert cfg.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=False,
        device_ids=None)


def test_a_configured_wrapper_is_kept(environment):
    launched(
        environment,
        MASTER_ADDR='127.0.0.1',
        **dict(zip(NAMES, ('0', '1', '0'))))
    cfg = Config(dict(launcher='pytorch', model_wrapper_cfg=dict(type='Mine')))
    use_cpu_group(cfg)
    assert cfg.model_wrapper_cfg == dict(type='Mine', device_ids=None)


def test_a_process_that_was_not_launched_is_told_how():
    with pytest.raises(ValueError, match='finds no .*RANK.*dist_train.sh'):
        use_cpu_group(Config(dict(launcher='pytorch')))


def test_an_unknown_launcher_is_refused():
    with pytest.raises(ValueError, match="one of .*slurm.*, got 'horn'"):
        use_cpu_group(Config(dict(launcher='horn')))
