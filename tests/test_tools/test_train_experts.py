# SPDX-License-Identifier: Apache-2.0
"""Learning the tasks of a stream at the same time, each in a process."""
from __future__ import annotations

import pytest
from mmengine.config import Config
from run_comparison import differences

pytestmark = pytest.mark.integration


@pytest.mark.parametrize('engine', ['processes', 'ray'])
def test_experts_and_results_are_those_of_the_sequential_run(
        stream_config, learn, run_tool, tmp_path, monkeypatch, engine):
    if engine == 'ray':
        pytest.importorskip('ray')
    # as many threads as this process has
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    run_tool('train_experts.py', stream_config, '--work-dir',
             tmp_path / 'apart', '--engine', engine)
    # one task after another, from the same file
    cfg = Config.fromfile(stream_config)
    cfg.work_dir = str(tmp_path / 'rows')
    learn(cfg)
    assert differences(tmp_path / 'apart', tmp_path / 'rows') == []
    settings = [(tmp_path / name / 'settings.json').read_text()
                for name in ('apart', 'rows')]
    assert settings[0] == settings[1]
    for task in ('00_day', '01_night', '02_infrared'):
        assert (tmp_path / 'apart/tasks' / task / 'iter_6.pth').exists()
