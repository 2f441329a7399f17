# SPDX-License-Identifier: Apache-2.0
"""What a result says about its making."""
from __future__ import annotations

import subprocess
from importlib.metadata import version

import pytest
from mmengine.config import Config

import mmseg_mile
from mmseg_mile.engine import work_dir as provenance


def test_versions_are_those_installed():
    found = provenance.versions()
    assert found['mmseg_mile'] == mmseg_mile.__version__
    for name in ('torch', 'peft', 'numpy'):
        assert found[name] == version(name)
    assert {'python', 'mmseg', 'mmengine', 'mmcv'} < set(found)


def test_commit_is_what_git_says(monkeypatch):
    answer = subprocess.CompletedProcess([], 0, stdout='0123456789ab-dirty\n')
    monkeypatch.setattr(subprocess, 'run', lambda *args, **kwargs: answer)
    assert provenance.commit() == '0123456789ab-dirty'


@pytest.mark.parametrize('error', [
    FileNotFoundError('git'),
    subprocess.CalledProcessError(128, 'git'),
])
def test_without_git_there_is_no_commit(monkeypatch, error):

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(subprocess, 'run', fail)
    assert provenance.commit() is None


def test_device_on_a_cpu_names_its_threads(monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    monkeypatch.setattr('torch.get_num_threads', lambda: 3)
    assert provenance.device().startswith('cpu ')
    assert provenance.device().endswith(', 3 threads')


def test_record_has_the_fields_of_the_results_file():
    record = provenance.provenance(Config(dict(a=1)))
    assert set(record) == {'commit', 'versions', 'config', 'device'}
    assert record['config'] == dict(a=1)


def test_config_is_told_without_what_differs_from_start_to_start():
    cfg = Config(dict(a=1, work_dir='here', resume=True, launcher='pytorch'))
    assert provenance.provenance(cfg)['config'] == dict(a=1)
    assert cfg.work_dir == 'here'
