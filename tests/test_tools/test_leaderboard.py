# SPDX-License-Identifier: Apache-2.0
"""A leaderboard of two methods, interrupted and taken up again."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'leaderboard.py'
FILES = ('leaderboard.html', 'leaderboard.md', 'leaderboard.csv', 'runs.csv',
         'leaderboard_tiny.png')

pytestmark = pytest.mark.integration


@pytest.fixture(scope='module')
def configs(tiny_config, quick, tmp_path_factory):
    """MILE, and its experts under another gate, named before them."""
    folder = tmp_path_factory.mktemp('configs')
    changes = dict(
        gate=dict(
            model__gate=dict(type='PrototypeGate', metric='cosine'),
            train_cfg__method='MILE, cosine',
            train_cfg__experts_from='{work_dir}/mile/seed_{seed}'),
        mile={})
    for name, change in changes.items():
        with quick():
            tiny_config(folder / 'unused', ('day', 'night'),
                        **change).dump(folder / f'{name}.py')
    return [str(folder / f'{name}.py') for name in changes]


@pytest.fixture
def call(run_tool):
    """``call(...)``: exit status of the tool in this process."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            run_tool(TOOL.name, *arguments)
        return ended.value.code

    return run


def arguments(configs, work_dir):
    return [
        *configs, '--work-dir', work_dir, '--seeds', '4', '--cfg-options',
        'train_cfg.max_iters=1', 'default_hooks.checkpoint.interval=100'
    ]


@pytest.fixture(scope='module')
def stopped(configs, tmp_path_factory):
    """A leaderboard that got a Ctrl-C during its second run."""
    work_dir = tmp_path_factory.mktemp('stopped') / 'runs'
    log = work_dir / 'gate' / 'seed_4.log'
    process = subprocess.Popen(
        [sys.executable, TOOL, *arguments(configs, work_dir)],
        env=dict(os.environ, OMP_NUM_THREADS='1'),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background jobs begin with it ignored
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL))
    while process.poll() is None and not log.exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 130, errors
    return work_dir, output


def test_ctrl_c_says_how_to_go_on(stopped, configs):
    _, output = stopped
    last = output.strip().splitlines()[-1]
    assert last.split()[:2] == ['python', str(TOOL)]
    assert configs[0] in last and '--seeds 4' in last


def test_what_is_finished_is_in_the_table_at_once(stopped):
    work_dir, output = stopped
    assert '[1/2] mile, seed 4: average mIoU' in output
    assert '| MILE ' in (work_dir / 'leaderboard.md').read_text()


@pytest.fixture
def finished(stopped, configs, call, capfd):
    """The same command once more."""
    work_dir, _ = stopped
    assert call(*arguments(configs, work_dir)) == 0
    return work_dir, capfd.readouterr().out


def test_same_command_goes_on(finished, call, tmp_path):
    work_dir, output = finished
    assert '1 of 2 runs are finished already' in output
    assert 'mile, seed 4 starts' not in output
    assert '[2/2] gate, seed 4: average mIoU' in output
    text = (work_dir / 'leaderboard.md').read_text()
    assert '| MILE, cosine ' in text and 'Left out' not in text
    # only reads, and writes the same
    assert call('--results', work_dir, '--out', tmp_path) == 0
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (work_dir / name).read_bytes()


def test_failed_run_is_reported_at_the_end(configs, call, capfd, tmp_path):
    work_dir = tmp_path / 'runs'
    status = call(configs[1], '--work-dir', work_dir, '--cfg-options',
                  'train_cfg.data_root=absent')
    output = capfd.readouterr()
    assert status == 1
    assert '[1/1] mile, seed 0 FAILED: exit status 1' in output.out
    assert 'absent' in output.err.split('FAILED: mile, seed 0')[1]
    assert (work_dir / 'leaderboard.html').exists()


@pytest.mark.parametrize('given, message', [
    ([], 'give configs to run, or --results to read'),
    (['a.py', '--results', 'b'], 'give configs to run, or --results'),
    (['--results', 'b'], '--results needs --out')])  # yapf: disable
def test_unclear_command_is_refused(call, capfd, given, message):
    assert call(*given) == 2
    assert message in capfd.readouterr().err
