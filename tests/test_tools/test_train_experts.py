# SPDX-License-Identifier: Apache-2.0
"""Learning the tasks of a stream at the same time, each in a process."""
from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'train_experts.py'
TASKS = ('day', 'night', 'infrared')
FILES = ('adapter_config.json', 'adapter_model.safetensors', 'expert.json',
         'head.safetensors', 'norm.safetensors', 'prototypes.safetensors')

pytestmark = pytest.mark.integration


@pytest.fixture(scope='module')
def sequential(stream_config, learn, tmp_path_factory):
    """One task after another, from the same file."""
    cfg = Config.fromfile(stream_config)
    cfg.work_dir = str(tmp_path_factory.mktemp('sequential') / 'run')
    return learn(cfg).work_dir


@pytest.fixture(scope='module', params=['processes', 'ray'])
def parallel(request, stream_config, quick, forget_runner, tmp_path_factory):
    """Two tasks at the same time."""
    if request.param == 'ray':
        pytest.importorskip('ray')
    work_dir = tmp_path_factory.mktemp('parallel') / 'run'
    forget_runner()
    with pytest.MonkeyPatch.context() as patch, quick():
        # as many threads as this process has
        patch.setenv('OMP_NUM_THREADS', '1')
        patch.setattr(sys, 'argv', [
            TOOL.name,
            str(stream_config), '--work-dir',
            str(work_dir), '--engine', request.param
        ])
        runpy.run_path(str(TOOL), run_name='__main__')
    return work_dir


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('name', FILES)
def test_experts_are_those_of_the_sequential_run(parallel, sequential, task,
                                                 name):
    mine, theirs = ((run / 'library' / task / name).read_bytes()
                    for run in (parallel, sequential))
    assert mine == theirs


@pytest.mark.parametrize('name', [
    'library/base.safetensors', 'library/library.json', 'oracle_digests.json',
    'cross_expert_miou.json', 'settings.json'
])
def test_files_are_those_of_the_sequential_run(parallel, sequential, name):
    mine, theirs = ((run / name).read_bytes()
                    for run in (parallel, sequential))
    assert mine == theirs


def test_results_are_those_of_the_sequential_run(parallel, sequential):
    mine, theirs = (
        json.loads((run / 'results.json').read_text())
        for run in (parallel, sequential))
    for results in (mine, theirs):
        assert None not in results['cost'].pop('train_seconds')
    assert mine == theirs


@pytest.mark.parametrize('task', ['00_day', '01_night', '02_infrared'])
def test_checkpoints_are_where_the_sequential_run_has_them(parallel, task):
    assert (parallel / 'tasks' / task / 'iter_6.pth').exists()
