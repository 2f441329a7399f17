# SPDX-License-Identifier: Apache-2.0
"""Experts of one run under the gate of another."""
from __future__ import annotations

import json
import shutil

import pytest
from run_comparison import library_files

pytestmark = pytest.mark.integration


def results_of(run):
    return json.loads((run.work_dir / 'results.json').read_text())


def test_same_gate_over_adopted_experts_scores_the_same(
        stream_run, learn, tiny_config, tmp_path):
    run = learn(
        tiny_config(
            tmp_path / 'again',
            train_cfg__experts_from=str(stream_run.work_dir)))
    assert run.diary.learned == []
    mine, theirs = results_of(run), results_of(stream_run)
    for field in ('miou', 'class_iou', 'gate'):
        assert mine[field] == theirs[field]
    assert mine['cost']['train_seconds'] == theirs['cost']['train_seconds']
    mine, theirs = (library_files(r.work_dir) for r in (run, stream_run))
    tensors = [n for n in theirs if 'adapter_model' in n or 'head' in n]
    assert tensors and all(mine[n] == theirs[n] for n in tensors)


@pytest.mark.parametrize('change, message', [
    (dict(randomness__seed=5), r'is of seed 3, this run of seed 5'),
    (dict(domains=('night', 'day')), r"this stream needs \['night', 'day'\]"),
    (dict(train_cfg__experts_from='nowhere'), 'holds no results.json'),
])
def test_unfit_donor_is_refused(stream_run, learn, tiny_config, tmp_path,
                                change, message):
    settings = dict(train_cfg__experts_from=str(stream_run.work_dir))
    with pytest.raises(ValueError, match=message):
        learn(tiny_config(tmp_path / 'run', **{**settings, **change}))


def test_method_without_experts_is_refused(stream_run, learn, tiny_config,
                                           tmp_path):
    cfg = tiny_config(
        tmp_path / 'run', train_cfg__experts_from=str(stream_run.work_dir))
    cfg.model.type = 'FineTuneSegmentor'
    cfg.model.backbone = cfg.model.backbone.backbone
    for name in ('gate', 'embedder', 'init_from'):
        cfg.model.pop(name, None)
    with pytest.raises(ValueError, match='FineTuneSegmentor has no experts'):
        learn(cfg)


def test_broken_donor_is_named(stream_run, learn, tiny_config, tmp_path):
    donor = tmp_path / 'donor'
    shutil.copytree(stream_run.work_dir, donor)
    (donor / 'results.json').write_text('{')
    with pytest.raises(ValueError, match='donor/results.json'):
        learn(
            tiny_config(tmp_path / 'run', train_cfg__experts_from=str(donor)))
