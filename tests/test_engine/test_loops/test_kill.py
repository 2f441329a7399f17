# SPDX-License-Identifier: Apache-2.0
"""A process that is killed, and the same command once more."""
from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_comparison import library_tensors, results_of, unfinished

TOOL = Path(__file__).resolve().parents[3] / 'tools' / 'train.py'

pytestmark = pytest.mark.integration


def start(config, work_dir):
    # one thread, as in the run that it is compared with
    return subprocess.Popen(
        [sys.executable, str(TOOL), str(config), '--work-dir',
         str(work_dir), '--resume'],
        env=dict(os.environ, OMP_NUM_THREADS='1'),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True)  # yapf: disable


@pytest.fixture(scope='module')
def work_dir(stream_run, tmp_path_factory, quick):
    folder = tmp_path_factory.mktemp('killed')
    cfg = copy.deepcopy(stream_run.cfg)
    # stock checkpoints, which format the config each time, take longest
    cfg.default_hooks.checkpoint.interval = 100
    with quick():
        cfg.dump(folder / 'tiny.py')
    work_dir = folder / 'run'
    snapshot = work_dir / 'tasks' / '01_night' / 'snapshot.safetensors'
    process = start(folder / 'tiny.py', work_dir)
    while not snapshot.exists() and process.poll() is None:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read()
    learned = json.loads((work_dir / 'results.json').read_text())
    assert learned['cost']['train_seconds'][1] is None
    process = start(folder / 'tiny.py', work_dir)
    errors = process.communicate()[1]
    assert process.returncode == 0, errors
    return work_dir


def test_experts_equal_those_of_an_uninterrupted_run(work_dir, stream_run):
    assert library_tensors(work_dir) == library_tensors(stream_run.work_dir)


def test_results_equal_those_of_an_uninterrupted_run(work_dir, stream_run):
    mine, theirs = results_of(work_dir), results_of(stream_run.work_dir)
    for document in (mine, theirs):
        # the config went through a file, which lays its text out anew
        del document['provenance']['config']
        del document['cost']['kept_bytes']
        for expert in document['cost']['experts']:
            del expert['bytes']
    assert mine == theirs


def test_nothing_unfinished_is_left(work_dir):
    assert unfinished(work_dir) == []
