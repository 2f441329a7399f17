# SPDX-License-Identifier: Apache-2.0
"""Several processes that train one model, beside one process."""
from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel
from run_comparison import differences, library_tensors, results_of
from safetensors.torch import load_file
from torch import nn

from mmseg_mile.adapters.stages import checkpoint_blocks
from mmseg_mile.engine import task_training
from mmseg_mile.engine.task_training import average_statistics
from mmseg_mile.evaluation import read_routing_log, routing_log_path

ROOT = Path(__file__).resolve().parents[2]
TASKS = ('day', 'night', 'infrared')
# Ends one process of a run, as a machine that breaks down would.
BREAKDOWN = '''
import os
import signal

from mmengine.hooks import Hook

from mmseg.registry import HOOKS


@HOOKS.register_module()
class Breakdown(Hook):

    def __init__(self):
        self.task = None

    def before_stream_task(self, runner, tasks, index):
        self.task = tasks[index].name

    def after_train_iter(self, runner, batch_idx, **kwargs):
        where = f'{os.environ.get("RANK")} {self.task} {batch_idx}'
        if os.environ.get('BREAKDOWN') == where:
            os.kill(os.getpid(), signal.SIGKILL)
'''
needs_gloo = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason='torch has no gloo')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('processes')
    (folder / 'breakdown.py').write_text(BREAKDOWN)
    return folder


@pytest.fixture(scope='module')
def config(tiny_config):
    """``config(work_dir, batch_size, **changes)``: may come out equal.

    What a batch norm sees depends on the process; what dropout draws, too.
    """

    def config(work_dir, batch_size, **changes):
        group_norm = dict(type='GN', num_groups=4, _delete_=True)
        return tiny_config(
            work_dir,
            train_dataloader__batch_size=batch_size,
            model__backbone__base_training='none',
            model__backbone__backbone__norm_cfg=group_norm,
            model__decode_head__norm_cfg=group_norm,
            model__decode_head__dropout_ratio=0.0,
            model__gate__num_prototypes=2,
            optim_wrapper__optimizer=dict(
                type='SGD', lr=0.05, momentum=0.9, _delete_=True),
            **changes)

    return config


@pytest.fixture(scope='module')
def launch(config, quick, folder):
    """``launch(name, *options, **environment)``: two, with batches of two."""
    path = folder / 'tiny.py'
    with quick():
        config(
            folder / 'unused',
            2,
            custom_imports__imports=['mmseg_mile', 'breakdown'],
            custom_hooks=[dict(type='Breakdown')]).dump(path)

    def launch(name, *options, **environment):
        done = subprocess.run(
            ['bash', ROOT / 'tools' / 'dist_train.sh', path, '2', '--work-dir',
             folder / name, *options],
            env=dict(
                os.environ,
                OMP_NUM_THREADS='1',
                PYTHON=sys.executable,
                PYTHONPATH=str(folder),
                PYTHONWARNINGS='ignore',
                **environment),
            capture_output=True,
            text=True,
            timeout=300)  # yapf: disable
        return folder / name, done

    return launch


@pytest.fixture(scope='module')
def two(launch):
    work_dir, done = launch('two')
    assert done.returncode == 0, done.stderr
    return work_dir


@needs_gloo
@pytest.mark.integration
def test_two_processes_learn_what_one_does(config, learn, folder, two):
    """One process with batches of four, two with batches of two."""
    one = learn(config(folder / 'one', 4)).work_dir
    for task in TASKS:
        for part in ('adapter_model', 'norm', 'head', 'prototypes'):
            mine, theirs = (
                load_file(run / 'library' / task / f'{part}.safetensors')
                for run in (two, one))
            exact = dict(
                rtol=0, atol=0) if part == 'prototypes' else dict(
                    rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(mine, theirs, **exact)
        # the experts differ a little, the frozen base that routes does not
        mine, theirs = ([
            replace(line, miou=None, oracle_miou=None)
            for line in read_routing_log(routing_log_path(run, task))
        ] for run in (two, one))
        assert len(mine) == 9 and mine == theirs
    mine, theirs = results_of(two), results_of(one)
    assert mine['gate'] == theirs['gate']
    # three images of each task, which two processes cannot halve
    assert [sum(row) for row in mine['gate']['confusion']] == [3, 3, 3]
    for kind in ('routed', 'oracle'):
        for left, right in zip(mine['miou'][kind], theirs['miou'][kind]):
            assert left == pytest.approx(right, abs=0.1)
    for field in ('base_params', 'kept_params', 'macs'):
        assert mine['cost'][field] == theirs['cost'][field] is not None


@needs_gloo
@pytest.mark.integration
def test_two_processes_go_on_after_one_was_killed(launch, two):
    work_dir, done = launch('broken', BREAKDOWN='1 night 3')
    assert done.returncode != 0
    learned = json.loads((work_dir / 'results.json').read_text())
    assert learned['cost']['train_seconds'][1:] == [None, None]
    work_dir, done = launch('broken', '--resume')
    assert done.returncode == 0, done.stderr
    assert differences(work_dir, two) == []


class Wrappers(Hook):
    """Keeps the model that each task is trained with."""

    def __init__(self):
        self.models = []

    def before_train(self, runner):
        self.models.append(runner.model)


@needs_gloo
@pytest.mark.integration
def test_model_is_wrapped_anew_for_each_task(learn, tiny_config, tmp_path,
                                             stream_run, monkeypatch):
    """A group of one process learns what a plain run does."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    for name, value in dict(
            MASTER_ADDR='127.0.0.1',
            MASTER_PORT=port,
            RANK=0,
            LOCAL_RANK=0,
            WORLD_SIZE=1).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, 'set_device', lambda device: None)
    wrappers = Wrappers()
    run = learn(
        tiny_config(
            tmp_path / 'run',
            launcher='pytorch',
            model_wrapper_cfg=dict(
                type='MMDistributedDataParallel', device_ids=None),
            env_cfg__dist_cfg=dict(backend='gloo'),
            # A synchronised norm layer trains on GPUs only.
            model__backbone__backbone__norm_cfg__type='BN',
            model__decode_head__norm_cfg__type='BN'),
        wrappers)
    assert len(set(map(id, wrappers.models))) == 3
    assert {type(m) for m in wrappers.models} == {MMDistributedDataParallel}
    assert type(run.runner.model).__name__ == 'ExpertSegmentor'
    assert library_tensors(run.work_dir) == library_tensors(
        stream_run.work_dir)


class HalfFrozen(nn.Module):
    """One norm layer that trains, and two whose statistics do not move."""

    def __init__(self):
        super().__init__()
        self.owned = nn.BatchNorm2d(2)
        self.owned.with_cp = False
        self.frozen = nn.BatchNorm2d(2)
        self.memoryless = nn.BatchNorm2d(2, track_running_stats=False)

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x):
        return self.memoryless(self.frozen(self.owned(x)))


@pytest.mark.parametrize('with_cp', [False, True])
def test_statistics_that_were_learned_are_averaged(monkeypatch, with_cp):
    calls = []
    monkeypatch.setattr(task_training, 'all_reduce_params',
                        lambda params, op: calls.append((list(params), op)))
    model = HalfFrozen()
    if with_cp:
        checkpoint_blocks(model)
    model(torch.randn(2, 2, 4, 4))
    average_statistics(model.eval())
    (tensors, how), = calls
    assert how == 'mean'
    assert list(map(id, tensors)) == [
        id(model.owned.running_mean),
        id(model.owned.running_var)
    ]
