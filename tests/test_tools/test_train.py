# SPDX-License-Identifier: Apache-2.0
"""A config on the command line, with our tool and with MMSegmentation's."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mmseg

ROOT = Path(__file__).resolve().parents[2]
STOCK_TRAIN = Path(mmseg.__file__).parent / '.mim' / 'tools' / 'train.py'
LENGTH = 'train_cfg.max_iters=1'

pytestmark = pytest.mark.integration


def call(*command, **options):
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    return subprocess.run([sys.executable, '-W', 'ignore', *map(str, command)],
                          env=dict(
                              os.environ, PYTHONPATH=path,
                              OMP_NUM_THREADS='1'),
                          capture_output=True,
                          text=True,
                          **options)


@pytest.fixture(scope='module')
def config(tiny_config, quick, tmp_path_factory):
    """The tiny stream's first two tasks in a file."""
    folder = tmp_path_factory.mktemp('config')
    path = folder / 'tiny.py'
    with quick():
        tiny_config(folder / 'unused', ('day', 'night')).dump(path)
    return path


@pytest.fixture(scope='module')
def ours(config, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('ours') / 'run'
    return work_dir, call(ROOT / 'tools' / 'train.py', config, '--work-dir',
                          work_dir, '--cfg-options', LENGTH)


@pytest.fixture(scope='module')
def stock(config, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('stock') / 'run'
    return work_dir, call(STOCK_TRAIN, config, '--work-dir', work_dir,
                          '--cfg-options', LENGTH)


@pytest.mark.parametrize('tool', ['ours', 'stock'])
def test_tool_learns_the_stream(tool, request):
    work_dir, done = request.getfixturevalue(tool)
    assert done.returncode == 0, done.stderr
    results = json.loads((work_dir / 'results.json').read_text())
    assert results['tasks'] == ['day', 'night']
    assert None not in results['miou']['routed'][-1]
    assert (work_dir / 'library' / 'night' / 'expert.json').exists()


@pytest.mark.parametrize('tool', ['ours', 'stock'])
def test_settings_of_the_command_line_hold(tool, request):
    work_dir, _ = request.getfixturevalue(tool)
    assert (work_dir / 'tasks' / '01_night' / 'iter_1.pth').exists()
    assert not (work_dir / 'tasks' / '01_night' / 'iter_2.pth').exists()


def test_stock_tool_learns_the_same_experts(ours, stock):
    for name in ('adapter_model', 'head', 'prototypes'):
        mine, theirs = ((work_dir / 'library' / 'night' /
                         f'{name}.safetensors').read_bytes()
                        for work_dir, _ in (ours, stock))
        assert mine == theirs


def test_table_is_printed(ours):
    _, done = ours
    assert '| night ' in done.stdout


@pytest.fixture(scope='module')
def mixed(config, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('mixed') / 'run'
    return work_dir, call(ROOT / 'tools' / 'train.py', config, '--work-dir',
                          work_dir, '--amp', '--cfg-options', LENGTH)


def test_experts_learn_in_mixed_precision(mixed, ours):
    work_dir, done = mixed
    assert done.returncode == 0, done.stderr
    learned, exact = (
        load_file(run / 'library' / 'night' / 'adapter_model.safetensors')
        for run in (work_dir, ours[0]))
    assert any(not torch.equal(learned[k], exact[k]) for k in exact)
    for key, value in learned.items():
        assert value.dtype == torch.float32 and value.isfinite().all(), key


def test_mixed_precision_of_another_optimizer_wrapper_is_refused(config):
    done = call(ROOT / 'tools' / 'train.py', config, '--amp', '--cfg-options',
                'optim_wrapper.type=DeepSpeedOptimWrapper')
    assert done.returncode != 0
    assert "--amp needs optim_wrapper.type OptimWrapper, got '" in done.stderr


def test_missing_pretrained_weights_are_refused(config, run_tool):
    with pytest.raises(ValueError, match="weights 'absent.pth' do not exist"):
        run_tool('train.py', config, '--pretrained', 'absent.pth')
