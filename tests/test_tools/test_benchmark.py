# SPDX-License-Identifier: Apache-2.0
"""The benchmark from the command line, on a tiny network."""
from __future__ import annotations

import copy
import json

import pytest
from mmengine.config import Config
from tiny import TINY_MODEL

from mmseg_mile.benchmarks import library_scale, prediction, training

SMALL = ('--size', 64, '--batch', 2, '--rounds', 1, '--warmup', 0)
COMMANDS = dict(
    predict=(*SMALL, '--experts', 2),
    fuse=(*SMALL, '--experts', 2, '--library', 3),
    train=SMALL,
    scale=(*SMALL, '--experts', 2, '--counts', 2, 3),
    disk=('--size', 64))


@pytest.fixture
def config(tmp_path, monkeypatch):
    """File of a tiny network; memory is not measured in processes."""
    monkeypatch.setattr(training, 'peak_training_bytes', lambda *_: 1 << 20)
    monkeypatch.setattr(library_scale, 'library_memory',
                        lambda *_: dict(opened=1 << 20, used=1 << 20))
    path = tmp_path / 'tiny.py'
    Config(dict(model=copy.deepcopy(TINY_MODEL))).dump(path)
    return path


@pytest.mark.parametrize('command', COMMANDS)
def test_command_prints_and_writes(command, config, run_tool, tmp_path,
                                   capsys):
    with pytest.raises(SystemExit) as status:
        run_tool('benchmark.py', command, config, '--out', tmp_path,
                 *COMMANDS[command])
    assert status.value.code == 0
    record = json.loads((tmp_path / f'benchmark_{command}.json').read_text())
    assert record['benchmark'] == command
    assert record['rows']
    table = (tmp_path / f'benchmark_{command}.md').read_text()
    assert table in capsys.readouterr().out
    assert (tmp_path / f'benchmark_{command}.png').stat().st_size > 1000


def test_wrong_output_fails_the_command(config, run_tool, tmp_path, capsys,
                                        monkeypatch):
    monkeypatch.setattr(
        'mmseg_mile.benchmarks.comparison.'
        'MAX_LOGITS_DIFFERENCE', -1.0)
    monkeypatch.setattr(prediction, 'CONTENDERS',
                        (prediction.Stock, prediction.Ours))
    with pytest.raises(SystemExit) as status:
        run_tool('benchmark.py', 'predict', config, '--out', tmp_path,
                 *COMMANDS['predict'])
    assert status.value.code == 1
    assert 'FAILED: tiny, ours, routed' in capsys.readouterr().err
