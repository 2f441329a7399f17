# SPDX-License-Identifier: Apache-2.0
"""Scoring what a run left, with a gate of one's choice."""
from __future__ import annotations

import json

import pytest
from mmengine.config import Config
from tiny import one_model_config

pytestmark = pytest.mark.integration


@pytest.fixture
def score(run_tool, stream_config, stream_run, tmp_path, capsys):
    """``score(gate)``: scores by task, and what was printed."""

    def run(gate, *options):
        out = tmp_path / f'{gate}.json'
        run_tool('test.py', stream_config, stream_run.work_dir, '--gate', gate,
                 '--out', out, *options)
        document = json.loads(out.read_text())
        assert document['gate'] == gate
        return document['tasks'], capsys.readouterr().out

    return run


@pytest.fixture
def results(stream_run):
    return json.loads((stream_run.work_dir / 'results.json').read_text())


def mious(tasks):
    return [task['miou'] for task in tasks.values()]


def test_prototype_gate_repeats_the_last_row(score, results):
    tasks, _ = score('prototype')
    assert list(tasks) == results['tasks']
    assert mious(tasks) == pytest.approx(
        results['miou']['routed'][-1], abs=1e-3)
    for name, task in tasks.items():
        assert task['chosen'] == {name: 3}
        assert task['class_iou'] == pytest.approx(
            results['class_iou']['routed'][name], abs=1e-3)


def test_oracle_repeats_the_oracle_row(score, results):
    tasks, _ = score('oracle', '--cfg-options',
                     'train_cfg.val_dataloader.batch_size=3')
    assert mious(tasks) == pytest.approx(
        results['miou']['oracle'][-1], abs=1e-3)


def test_named_expert_predicts_every_image(score, stream_run):
    tasks, printed = score('night')
    cross = json.loads(
        (stream_run.work_dir / 'cross_expert_miou.json').read_text())
    assert mious(tasks) == pytest.approx([row[1] for row in cross['miou']],
                                         abs=1e-3)
    assert [task['chosen'] for task in tasks.values()] == [{'night': 3}] * 3
    assert 'night 3' in printed


def test_unknown_gates_folders_and_streams_are_refused(score, run_tool,
                                                       stream_config,
                                                       stream_run, tmp_path):
    with pytest.raises(
            ValueError,
            match="--gate must be 'prototype', 'oracle' .*"
            "'infrared'.*, got 'noon'"):
        score('noon')
    with pytest.raises(ValueError, match='results.json does not exist'):
        run_tool('test.py', stream_config, tmp_path)
    cfg = Config.fromfile(stream_config)
    cfg.train_cfg.stream = 'other'
    cfg.dump(tmp_path / 'other.py')
    with pytest.raises(ValueError, match="stream 'tiny', the config says"):
        run_tool('test.py', tmp_path / 'other.py', stream_run.work_dir)


def test_method_without_experts_has_no_oracle(run_tool, tmp_path, learn,
                                              tiny_config, quick):
    cfg = tiny_config(tmp_path / 'run', ('day', ), train_cfg__max_iters=1)
    cfg.model = one_model_config('FineTuneSegmentor')
    learn(cfg)
    with quick():
        cfg.dump(tmp_path / 'tiny.py')
    arguments = ('test.py', tmp_path / 'tiny.py', tmp_path / 'run')
    with pytest.raises(ValueError, match="--gate must be .*, got 'oracle'"):
        run_tool(*arguments, '--gate', 'oracle')
    run_tool(*arguments)
    assert (tmp_path / 'run' / 'test_prototype.json').exists()
