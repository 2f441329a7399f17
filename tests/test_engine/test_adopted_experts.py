# SPDX-License-Identifier: Apache-2.0
"""Experts of one run under the gate of another."""
from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from mmengine.hooks import Hook
from run_comparison import library_files

from mmseg_mile.engine.parallel import learn_experts
from mmseg_mile.evaluation.results import StreamResults

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


class Stop(Hook):
    """Ends the process before the second row."""

    def before_stream_row(self, runner, task_index):
        if task_index == 1:
            raise KeyboardInterrupt


def test_interrupted_run_takes_over_the_rest(stream_run, learn, tiny_config,
                                             tmp_path):
    donor = shutil.copytree(stream_run.work_dir, tmp_path / 'donor')
    cfg = tiny_config(tmp_path / 'run', train_cfg__experts_from=str(donor))
    with pytest.raises(KeyboardInterrupt):
        learn(cfg, Stop())
    cfg.resume = True
    run = learn(cfg)
    assert run.diary.learned == [] and run.diary.rows == [1, 2]
    mine, theirs = results_of(run), results_of(stream_run)
    for field in ('miou', 'class_iou', 'gate', 'scores'):
        assert mine[field] == theirs[field]
    for name in ('day', 'night', 'infrared'):
        mine, theirs = ((r.work_dir / 'routing_log' /
                         f'{name}.jsonl').read_bytes()
                        for r in (run, stream_run))
        assert mine == theirs
    # all is in the run's own library now
    shutil.rmtree(donor)
    assert learn(cfg).diary.rows == []


def test_interrupted_run_still_needs_the_donor(stream_run, learn, tiny_config,
                                               tmp_path):
    donor = shutil.copytree(stream_run.work_dir, tmp_path / 'donor')
    cfg = tiny_config(tmp_path / 'run', train_cfg__experts_from=str(donor))
    with pytest.raises(KeyboardInterrupt):
        learn(cfg, Stop())
    shutil.rmtree(donor)
    cfg.resume = True
    with pytest.raises(ValueError, match='donor.* holds no results.json'):
        learn(cfg)


def test_donor_that_is_not_finished_is_refused(stream_run, learn, tiny_config,
                                               tmp_path):
    donor = shutil.copytree(stream_run.work_dir, tmp_path / 'donor')
    results = StreamResults.load(donor / 'results.json')
    results.cost.train_seconds[2] = np.nan
    results.save(donor / 'results.json')
    with pytest.raises(
            ValueError, match=r"has learned \['day', 'night'\], this stream"):
        learn(
            tiny_config(tmp_path / 'run', train_cfg__experts_from=str(donor)))


def test_task_with_other_classes_is_refused_before_the_first_row(
        stream_run, learn, tiny_config, tmp_path):
    cfg = tiny_config(
        tmp_path / 'run', train_cfg__experts_from=str(stream_run.work_dir))
    task = cfg.train_cfg.tasks[2]
    for split in ('train', 'val'):
        task[f'{split}_dataset'].metainfo.classes = ('cold', 'bus')
    with pytest.raises(ValueError, match="task 'infrared' has the classes"):
        learn(cfg)
    assert not (tmp_path / 'run' / 'results.json').exists()


def test_tasks_learned_apart_cannot_be_taken_over(stream_run, tiny_config,
                                                  tmp_path, quick,
                                                  forget_runner):
    cfg = tiny_config(
        tmp_path / 'run', train_cfg__experts_from=str(stream_run.work_dir))
    forget_runner()
    with quick(), pytest.raises(
            ValueError, match='nothing to learn at the same time.*train.py'):
        learn_experts(cfg, executor=None, num_workers=1)
