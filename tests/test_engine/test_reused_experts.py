# SPDX-License-Identifier: Apache-2.0
"""Experts of one run under the gate of another."""
from __future__ import annotations

import shutil

import numpy as np
import pytest
from mmengine.hooks import Hook
from run_comparison import library_files, results_of

from mmseg_mile.evaluation.results import StreamResults

pytestmark = pytest.mark.integration


class Stop(Hook):
    """Ends the process before the second row."""

    def before_stream_row(self, runner, task_index):
        if task_index == 1:
            raise KeyboardInterrupt


@pytest.fixture
def donor(stream_run, tmp_path):
    """A copy of what the uninterrupted run left."""
    return shutil.copytree(stream_run.work_dir, tmp_path / 'donor')


@pytest.fixture
def config(tiny_config, tmp_path, donor):
    """``config(**changes)`` takes the donor's experts over."""

    def make(**changes):
        return tiny_config(
            tmp_path / 'run',
            **dict(dict(train_cfg__experts_from=str(donor)), **changes))

    return make


def test_interrupted_run_with_the_same_gate_scores_the_same(
        stream_run, learn, config, donor):
    cfg = config()
    with pytest.raises(KeyboardInterrupt):
        learn(cfg, Stop())
    cfg.resume = True
    elsewhere = donor.rename(donor.with_name('elsewhere'))
    with pytest.raises(ValueError, match='donor.* holds no results.json'):
        learn(cfg)
    elsewhere.rename(donor)
    run = learn(cfg)
    assert run.diary.learned == [] and run.diary.rows == [1, 2]
    mine, theirs = results_of(run.work_dir), results_of(stream_run.work_dir)
    for field in ('miou', 'class_iou', 'gate', 'scores'):
        assert mine[field] == theirs[field]
    logs, files = zip(*([{
        path.name: path.read_bytes()
        for path in (folder / 'routing_log').iterdir()
    },
                         library_files(folder)]
                        for folder in (run.work_dir, stream_run.work_dir)))
    assert logs[0] == logs[1]
    tensors = [n for n in files[1] if n.endswith('.safetensors')]
    assert tensors and all(files[0][n] == files[1][n] for n in tensors)
    # all is in the run's own library now
    shutil.rmtree(donor)
    assert learn(cfg).diary.rows == []


def test_gate_that_errs_on_purpose_routes_the_same_experts(
        stream_run, learn, config):
    run = learn(
        config(
            model__gate=dict(type='MismatchedGate', _delete_=True),
            train_cfg__method='wrong'))
    results, theirs = map(results_of, (run.work_dir, stream_run.work_dir))
    confusion = np.array(results['gate']['confusion'])
    assert confusion.sum(axis=1).tolist() == [3, 3, 3]
    assert np.trace(confusion) == 0
    assert results['miou']['oracle'] == theirs['miou']['oracle']


def test_oracle_can_evaluate_tasks_to_come(learn, config):
    run = learn(
        config(
            model__gate=dict(type='OracleGate', fall_back=True, _delete_=True),
            train_cfg__method='oracle'))
    results = run.runner.train_loop.results
    routed, oracle = (results.miou[kind] for kind in ('routed', 'oracle'))
    learned = np.tri(3, dtype=bool)
    np.testing.assert_array_equal(routed[learned], oracle[learned])
    assert not np.isnan(routed).any()


def forget_last_task(donor, cfg):
    results = StreamResults.load(donor / 'results.json')
    results.cost.train_seconds[2] = np.nan
    results.save(donor / 'results.json')


def rename_class(donor, cfg):
    for split in ('train', 'val'):
        task = cfg.train_cfg.tasks[2]
        task[f'{split}_dataset'].metainfo.classes = ('cold', 'bus')


def one_network(donor, cfg):
    cfg.model.type = 'FineTuneSegmentor'
    cfg.model.backbone = cfg.model.backbone.backbone
    for name in ('gate', 'embedder', 'init_from'):
        cfg.model.pop(name, None)


@pytest.mark.parametrize('spoil, changes, message', [
    (None, dict(randomness__seed=5), 'is of seed 3, this run of seed 5'),
    (None, dict(train_cfg__selection_share=0.5),
     'selection_share=None, this run of 0.5: its experts were trained on'),
    (None, dict(domains=('night', 'day')), r"needs \['night', 'day'\]"),
    (None, dict(train_cfg__experts_from='nowhere'), 'holds no results.json'),
    (forget_last_task, {}, r"has learned \['day', 'night'\], this stream"),
    (rename_class, {}, "task 'infrared' has the classes"),
    (one_network, {}, 'FineTuneSegmentor has no experts'),
    (lambda donor, cfg:
     (donor / 'results.json').write_text('{'), {}, 'donor/results.json'),
])
def test_run_that_does_not_fit_is_refused_before_the_first_row(
        learn, config, donor, tmp_path, spoil, changes, message):
    cfg = config(**changes)
    if spoil is not None:
        spoil(donor, cfg)
    with pytest.raises(ValueError, match=message):
        learn(cfg)
    assert not (tmp_path / 'run' / 'results.json').exists()
