# SPDX-License-Identifier: Apache-2.0
"""Two processes without a GPU beside one with the doubled batch."""
from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed
from safetensors.torch import load_file

from mmseg_mile.evaluation import read_routing_log, routing_log_path

ROOT = Path(__file__).resolve().parents[3]
TASKS = ('day', 'night', 'infrared')
FILES = ('adapter_model.safetensors', 'head.safetensors', 'norm.safetensors',
         'prototypes.safetensors', 'expert.json')
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

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not torch.distributed.is_gloo_available(), reason='torch has no gloo')
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('two_processes')
    (folder / 'breakdown.py').write_text(BREAKDOWN)
    return folder


@pytest.fixture(scope='module')
def config(tiny_config, folder):
    """``config(work_dir, batch_size, **changes)``: may come out equal.

    What a batch norm sees depends on the process; what dropout draws, too.
    """

    def config(work_dir, batch_size, **changes):
        group_norm = dict(type='GN', num_groups=4, _delete_=True)
        return tiny_config(
            work_dir,
            TASKS,
            train_cfg__checkpoint_interval=2,
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
def one(config, learn, folder):
    """One process with batches of four."""
    return learn(config(folder / 'one', 4)).work_dir


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


@pytest.fixture(scope='module')
def broken(launch):
    """A run one process of which was killed in the second task."""
    started = time.perf_counter()
    work_dir, done = launch('broken', BREAKDOWN='1 night 3')
    return work_dir, done, time.perf_counter() - started


@pytest.fixture(scope='module')
def resumed(launch, broken):
    work_dir, done = launch('broken', '--resume')
    assert done.returncode == 0, done.stderr
    return work_dir


def tensors(work_dir, task, name):
    return load_file(work_dir / 'library' / task / f'{name}.safetensors')


def results(work_dir):
    return json.loads((work_dir / 'results.json').read_text())


@pytest.mark.parametrize('task', TASKS)
def test_prototypes_are_those_of_one_process(one, two, task):
    mine, theirs = (tensors(run, task, 'prototypes') for run in (two, one))
    assert set(mine) == set(theirs)
    for key, value in mine.items():
        assert torch.equal(value, theirs[key]), key


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('name', ['adapter_model', 'norm', 'head'])
def test_experts_are_those_of_the_doubled_batch(one, two, task, name):
    mine, theirs = (tensors(run, task, name) for run in (two, one))
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_scores_are_those_of_the_doubled_batch(one, two):
    mine, theirs = (results(run) for run in (two, one))
    for kind in ('routed', 'oracle'):
        for left, right in zip(mine['miou'][kind], theirs['miou'][kind]):
            assert left == pytest.approx(right, abs=0.1)
    assert mine['gate'] == theirs['gate']
    assert mine['cost']['base_params'] == theirs['cost']['base_params']


@pytest.mark.parametrize('after', TASKS)
def test_routing_log_has_the_lines_of_one_process(one, two, after):
    # the experts differ a little, the frozen base that routes does not
    mine, theirs = ([
        replace(line, miou=None, oracle_miou=None)
        for line in read_routing_log(routing_log_path(run, after))
    ] for run in (two, one))
    assert [line.file for line in mine] == [
        f'{task}/img/val/{index}.png' for task in TASKS for index in range(3)
    ]
    assert mine == theirs


def test_size_and_work_are_those_of_one_process(one, two):
    mine, theirs = (results(run)['cost'] for run in (two, one))
    for field in ('kept_params', 'macs'):
        assert mine[field] == theirs[field]
    assert None not in mine['kept_params'] and mine['macs'] > 0


def test_every_image_is_counted_once(two):
    confusion = results(two)['gate']['confusion']
    # three images of each task, which two processes cannot halve
    assert [sum(row) for row in confusion] == [3, 3, 3]


def test_a_killed_process_ends_the_other_one(broken):
    work_dir, done, seconds = broken
    assert done.returncode != 0
    assert seconds < 60
    assert results(work_dir)['cost']['train_seconds'][1:] == [None, None]


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('name', FILES)
def test_resumed_run_ends_with_the_same_experts(resumed, two, task, name):
    mine, theirs = ((run / 'library' / task / name).read_bytes()
                    for run in (resumed, two))
    assert mine == theirs


def test_resumed_run_ends_with_the_same_results(resumed, two):
    mine, theirs = (results(run) for run in (resumed, two))
    for run in (mine, theirs):
        del run['cost']['train_seconds']
    assert mine == theirs


def test_resumed_run_predicts_the_same_label_maps(resumed, two):
    mine, theirs = ((run / 'oracle_digests.json').read_text()
                    for run in (resumed, two))
    assert mine == theirs


@pytest.mark.parametrize('after', TASKS)
def test_resumed_run_logs_the_same_lines(resumed, two, after):
    mine, theirs = (
        routing_log_path(run, after).read_bytes() for run in (resumed, two))
    assert mine == theirs
