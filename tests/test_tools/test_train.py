# SPDX-License-Identifier: Apache-2.0
"""A config on the command line, with our tool and with MMSegmentation's."""
from __future__ import annotations

import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed
from mmengine.config import Config
from safetensors.torch import load_file

import mmseg
from mmseg_mile.files import locked

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools' / 'train.py'
STOCK_TRAIN = Path(mmseg.__file__).parent / '.mim' / 'tools' / 'train.py'


@pytest.fixture(scope='module')
def config(tiny_config, quick, tmp_path_factory):
    """The tiny stream's first two tasks in a file."""
    folder = tmp_path_factory.mktemp('config')
    path = folder / 'tiny.py'
    with quick():
        tiny_config(folder / 'unused', ('day', 'night')).dump(path)
    return path


def train(tool, config, work_dir, *options):
    """Library of a stream that is learned for one iteration per task."""
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', str(tool), str(config), '--work-dir',
         str(work_dir), *options, '--cfg-options', 'train_cfg.max_iters=1'],
        env=dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True)  # yapf: disable
    assert done.returncode == 0, done.stderr
    results = json.loads((work_dir / 'results.json').read_text())
    assert results['tasks'] == ['day', 'night']
    assert None not in results['miou']['routed'][-1]
    checkpoints = (work_dir / 'tasks' / '01_night').glob('*.pth')
    assert [path.name for path in checkpoints] == ['iter_1.pth']
    return work_dir / 'library' / 'night', done.stdout


@pytest.mark.integration
def test_stock_tool_learns_the_same_experts(config, tmp_path):
    ours, printed = train(TOOL, config, tmp_path / 'ours')
    assert '| night ' in printed
    stock, _ = train(STOCK_TRAIN, config, tmp_path / 'stock')
    for name in ('adapter_model', 'head', 'prototypes'):
        mine, theirs = ((folder / f'{name}.safetensors').read_bytes()
                        for folder in (ours, stock))
        assert mine == theirs
    mixed, _ = train(TOOL, config, tmp_path / 'mixed', '--amp')
    exact, learned = (
        load_file(folder / 'adapter_model.safetensors')
        for folder in (ours, mixed))
    assert any(not torch.equal(learned[k], exact[k]) for k in exact)
    for key, value in learned.items():
        assert value.dtype == torch.float32 and value.isfinite().all(), key


@pytest.mark.parametrize('options, message', [
    (['--amp', '--cfg-options', 'optim_wrapper.type=DeepSpeedOptimWrapper'
      ], "--amp needs optim_wrapper.type OptimWrapper, got '"),
    (['--pretrained', 'absent.pth'], "weights 'absent.pth' do not exist"),
])
def test_options_that_cannot_hold_are_refused(config, run_tool, options,
                                              message):
    with pytest.raises(ValueError, match=message):
        run_tool('train.py', config, *options)


@pytest.mark.parametrize('tool', ['train.py', 'train_experts.py'])
def test_second_run_changes_no_file_of_the_first(config, run_tool, tmp_path,
                                                 tool):
    with locked(tmp_path), pytest.raises(
            ValueError, match=f'another process writes {tmp_path}: .*--work-'):
        run_tool(tool, config, '--work-dir', tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['.lock']


# -- several processes without a GPU ------------------------------------------


@pytest.fixture
def join(monkeypatch):
    """``join(variables, **cfg)``: the config of a launched process."""
    tool = runpy.run_path(str(TOOL))
    names = {name for places in tool['PLACES'].values() for name in places}
    for name in (*names, 'MASTER_ADDR'):
        # set before it is deleted, so that what a test leaves is undone
        monkeypatch.setenv(name, '')
        monkeypatch.delenv(name)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        monkeypatch.setenv('MASTER_PORT', str(free.getsockname()[1]))

    def run(variables, device='cpu', **cfg):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        join_processes = tool['join_processes']
        monkeypatch.setitem(join_processes.__globals__, 'get_device',
                            lambda: device)
        made = Config(cfg)
        join_processes(made)
        return made

    run.places = tool['PLACES']
    return run


@pytest.mark.parametrize('device, launcher', [('cpu', 'none'),
                                              ('cuda', 'pytorch')])
def test_single_processes_and_gpus_are_left_to_mmengine(
        join, device, launcher):
    cfg = join({}, device, launcher=launcher)
    assert dict(cfg) == dict(launcher=launcher)
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize('launcher', ['pytorch', 'slurm', 'mpi'])
def test_processes_without_gpus_join_with_gloo(join, launcher):
    place = dict(zip(join.places[launcher], ('0', '1', '0')))
    cfg = join(
        dict(place, MASTER_ADDR='127.0.0.1'),
        launcher=launcher,
        model_wrapper_cfg=dict(type='Mine') if launcher == 'mpi' else None)
    assert torch.distributed.get_backend() == 'gloo'
    assert os.environ['LOCAL_RANK'] == '0'
    if launcher == 'mpi':
        assert cfg.model_wrapper_cfg == dict(type='Mine', device_ids=None)
    else:
        assert cfg.model_wrapper_cfg == dict(
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            find_unused_parameters=False,
            device_ids=None)


def test_process_that_was_not_launched_is_told_how(join):
    with pytest.raises(ValueError, match='finds no .*RANK.*dist_train.sh'):
        join({}, launcher='pytorch')
