# SPDX-License-Identifier: Apache-2.0
"""Scoring what a run left, with a gate of one's choice."""
from __future__ import annotations

import json

import pytest
from mmengine.config import Config

pytestmark = pytest.mark.integration


@pytest.fixture
def score(run_tool, stream_config, stream_run, tmp_path, capsys):
    """``score(gate)``: the JSON file and what was printed."""

    def run(gate, *options):
        out = tmp_path / f'{gate}.json'
        run_tool('test.py', stream_config, stream_run.work_dir, '--gate', gate,
                 '--out', out, *options)
        return json.loads(out.read_text()), capsys.readouterr().out

    return run


@pytest.fixture
def results(stream_run):
    return json.loads((stream_run.work_dir / 'results.json').read_text())


def mious(document):
    return [task['miou'] for task in document['tasks'].values()]


def test_prototype_gate_repeats_the_last_row(score, results):
    document, _ = score('prototype')
    assert document['gate'] == 'prototype'
    assert list(document['tasks']) == results['tasks']
    assert mious(document) == pytest.approx(
        results['miou']['routed'][-1], abs=1e-3)
    for name, task in document['tasks'].items():
        assert task['chosen'] == {name: 3}
        assert task['class_iou'] == pytest.approx(
            results['class_iou']['routed'][name], abs=1e-3)


def test_oracle_repeats_the_oracle_row(score, results):
    document, _ = score('oracle')
    assert mious(document) == pytest.approx(
        results['miou']['oracle'][-1], abs=1e-3)


def test_named_expert_predicts_every_image(score, stream_run):
    document, printed = score('night')
    cross = json.loads(
        (stream_run.work_dir / 'cross_expert_miou.json').read_text())
    column = [row[1] for row in cross['miou']]
    assert mious(document) == pytest.approx(column, abs=1e-3)
    assert [task['chosen']
            for task in document['tasks'].values()] == [{
                'night': 3
            }] * 3
    assert 'night 3' in printed


def test_settings_of_the_command_line_hold(score):
    document, _ = score('prototype', '--cfg-options',
                        'model.gate.metric=euclidean',
                        'train_cfg.val_dataloader.batch_size=3')
    assert len(document['tasks']) == 3


def test_unknown_gate_is_refused(score):
    with pytest.raises(
            ValueError,
            match="--gate must be 'prototype', 'oracle' .*"
            "'infrared'.*, got 'noon'"):
        score('noon')


def test_oracle_of_a_method_without_experts_is_refused(run_tool, stream_run,
                                                       tmp_path, learn,
                                                       tiny_config, quick):
    cfg = tiny_config(tmp_path / 'run', ('day', ), train_cfg__max_iters=1)
    model = cfg.model
    cfg.model = dict(
        type='FineTuneSegmentor',
        data_preprocessor=model.data_preprocessor,
        backbone=model.backbone.backbone,
        decode_head=model.decode_head,
        test_cfg=model.test_cfg)
    learn(cfg)
    with quick():
        cfg.dump(tmp_path / 'tiny.py')
    with pytest.raises(ValueError, match="--gate must be .*, got 'oracle'"):
        run_tool('test.py', tmp_path / 'tiny.py', tmp_path / 'run', '--gate',
                 'oracle')
    run_tool('test.py', tmp_path / 'tiny.py', tmp_path / 'run')
    assert (tmp_path / 'run' / 'test_prototype.json').exists()


def test_folder_without_results_is_refused(run_tool, stream_config, tmp_path):
    with pytest.raises(ValueError, match='results.json does not exist'):
        run_tool('test.py', stream_config, tmp_path)


def test_config_of_another_stream_is_refused(run_tool, stream_config,
                                             stream_run, tmp_path):
    cfg = Config.fromfile(stream_config)
    cfg.train_cfg.stream = 'other'
    cfg.dump(tmp_path / 'other.py')
    with pytest.raises(ValueError, match="stream 'tiny', the config says"):
        run_tool('test.py', tmp_path / 'other.py', stream_run.work_dir)
