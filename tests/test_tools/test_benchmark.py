# SPDX-License-Identifier: Apache-2.0
"""Benchmarks on tiny networks: outputs agree, failures are loud."""
from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from analysis_tools.benchmark import (fusion, harness, library_scale,
                                      prediction, training)
from analysis_tools.benchmark.harness import (Difference, Settings, Spread,
                                              compare, interleaved_seconds,
                                              ratios)
from mmengine.config import Config
from mmengine.structures import PixelData
from tiny import TINY_MIT, TINY_MODEL

import mmseg_mile  # noqa: F401  registers the components
from mmseg.structures import SegDataSample

SMALL = ('--size', 64, '--batch', 2, '--rounds', 1, '--warmup', 0)
COMMANDS = dict(
    predict=(*SMALL, '--experts', 2),
    fuse=(*SMALL, '--experts', 2, '--library', 3),
    train=SMALL,
    scale=(*SMALL, '--experts', 2, '--counts', 2, 3),
    disk=('--size', 64))
SETTINGS = Settings(size=64, batch=2, experts=2, rounds=2, warmup=0)
LOGITS = torch.tensor([[[4.0, 1.0]], [[2.0, 3.0]]])


@pytest.fixture(scope='module')
def configs(tmp_path_factory):
    """Files of a ResNet and of a MiT whose checkpoint does not exist."""
    folder = tmp_path_factory.mktemp('benchmarks')
    mit = copy.deepcopy(TINY_MODEL)
    inner = dict(
        TINY_MIT,
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='not_there.pth'))
    mit['backbone'].update(backbone=inner, train_norm=False)
    mit['decode_head']['in_channels'] = [8, 16, 16, 32]
    mit['data_preprocessor']['test_cfg'] = dict(size_divisor=32)
    for name, model in (('cnn', copy.deepcopy(TINY_MODEL)), ('mit', mit)):
        Config(dict(model=model)).dump(folder / f'{name}.py')
    return {name: str(folder / f'{name}.py') for name in ('cnn', 'mit')}


@pytest.fixture
def no_processes(monkeypatch):
    """Memory is not measured in processes of its own."""
    monkeypatch.setattr(training, 'peak_training_bytes', lambda *_: 1 << 20)
    monkeypatch.setattr(library_scale, 'library_memory',
                        lambda *_: dict(opened=1 << 20, used=1 << 20))


@pytest.mark.parametrize('command', COMMANDS)
def test_command_prints_and_writes(command, configs, run_tool, tmp_path,
                                   capsys, no_processes):
    with pytest.raises(SystemExit) as status:
        run_tool('benchmark.py', command, configs['cnn'], '--out', tmp_path,
                 *COMMANDS[command])
    assert status.value.code == 0
    record = json.loads((tmp_path / f'benchmark_{command}.json').read_text())
    assert record['benchmark'] == command and record['rows']
    table = (tmp_path / f'benchmark_{command}.md').read_text()
    assert table in capsys.readouterr().out


def test_wrong_output_fails_the_command(configs, run_tool, tmp_path, capsys,
                                        monkeypatch):
    monkeypatch.setattr(harness, 'MAX_LOGITS_DIFFERENCE', -1.0)
    monkeypatch.setattr(prediction, 'CONTENDERS',
                        (prediction.Stock, prediction.Ours))
    with pytest.raises(SystemExit) as status:
        run_tool('benchmark.py', 'predict', configs['cnn'], '--out', tmp_path,
                 *COMMANDS['predict'])
    assert status.value.code == 1
    assert 'FAILED: cnn, ours, routed' in capsys.readouterr().err


@pytest.mark.parametrize(
    'changes', [{}, dict(mode='slide', size=128),
                dict(dtype='bf16')])
def test_routed_predictions_of_a_transformer_equal_stock(configs, changes):
    report = prediction.benchmark_prediction([configs['mit']],
                                             dataclasses.replace(
                                                 SETTINGS, rounds=1,
                                                 **changes))
    assert report.failures == []
    rows = {row['contender']: row for row in report.rows}
    assert rows['stock mmseg']['ratio'] == 1
    ours = rows[prediction.Ours.name]
    assert ours['logits_difference'] <= 1e-4 and ours['num_labels'] > 1
    mixed = rows['PEFT, mixed batch']
    assert mixed['ratio'] is None
    assert mixed['note'].startswith('raised TypeError: lora.MultiheadAtt')


def test_fused_predictions_equal_the_mean_checkpoint(configs):
    report = fusion.benchmark_fusion(
        list(configs.values()), dataclasses.replace(SETTINGS, rounds=1), 6)
    assert report.failures == []
    ours = [
        row for row in report.rows
        if 'logits_difference' in row and 'ours' in row['contender']
    ]
    assert len(ours) >= 4
    assert all(row['logits_difference'] <= 1e-4 for row in ours)


@pytest.mark.parametrize('library', [0, 1])
def test_library_that_mixes_nothing_is_refused(library, configs):
    with pytest.raises(
            ValueError, match=f'--library must be at least 2, got {library}'):
        fusion.benchmark_fusion([configs['mit']], SETTINGS, library)


def test_losses_of_a_training_step_agree(configs, no_processes):
    settings = dataclasses.replace(SETTINGS, experts=1, rounds=1)
    report = training.benchmark_training([configs['cnn']], settings)
    assert report.failures == []
    assert all(row['loss_difference'] < 1e-4 * row['loss']
               for row in report.rows)


def test_other_loss_is_a_failure(configs, no_processes, monkeypatch):
    monkeypatch.setattr(training.OurExpert, 'loss', lambda self: 1.0)
    settings = dataclasses.replace(SETTINGS, experts=1, rounds=1)
    report = training.benchmark_training([configs['cnn']], settings)
    assert report.failures[0].startswith('cnn, ours, all stages: loss')
    assert 'FAILED: cnn' in report.markdown()


def test_memory_is_measured_in_processes_of_their_own(configs):
    settings = dataclasses.replace(SETTINGS, experts=1, rounds=1)
    full, ours = (
        training.peak_training_bytes(configs['cnn'], kind.name, settings)
        for kind in (training.CONTENDERS[0], training.OurExpert))
    assert 0 < ours < full


def sample(logits):
    return SegDataSample(
        seg_logits=PixelData(data=logits),
        pred_sem_seg=PixelData(data=logits.argmax(0, keepdim=True)))


@pytest.mark.parametrize('place, value, logits, labels', [
    (None, 0, 0.0, 0.0),
    ((0, 0, 0), 4.4, 0.1, 0.0),
    ((0, 0, 0), 1.0, 0.75, 0.5),
])
def test_difference_is_of_the_largest_logit(place, value, logits, labels):
    moved = LOGITS.clone()
    if place:
        moved[place] = value
    found = compare([sample(moved)], [sample(LOGITS)])
    assert found.logits == pytest.approx(logits)
    assert found.labels == labels
    assert found.passed is (place is None)


def test_what_says_nothing_does_not_pass():
    nan, flat = torch.full_like(LOGITS, torch.nan), LOGITS.clone()
    flat[0] = 4.0
    assert not compare([sample(nan)], [sample(LOGITS)]).passed
    assert not compare([sample(flat)], [sample(flat)]).passed
    with pytest.raises(ValueError, match='no seg_logits'):
        compare([SegDataSample()], [sample(LOGITS)])


@pytest.mark.parametrize('wrong, total, passed', [(1, 100, True),
                                                  (2, 100, False),
                                                  (9, 99999, True),
                                                  (11, 99999, False)])
def test_one_pixel_or_one_in_ten_thousand_may_lie_on_a_tie(
        wrong, total, passed):
    assert Difference(1e-6, wrong / total, 2, total).passed is passed


def test_rounds_are_interleaved_and_ratios_taken_round_by_round():
    called = []
    runs = {n: (lambda n=n: called.append(n)) for n in 'abc'}
    interleaved_seconds(runs,
                        dataclasses.replace(SETTINGS, rounds=3, warmup=1))
    assert ''.join(called) == 'abc' + 'abc' + 'bca' + 'cab'
    seconds = dict(stock=[1.0, 2.0, 4.0], ours=[0.5, 1.0, 2.0])
    assert ratios(seconds, 'stock')['ours'] == Spread(0.5, 0.5, 0.5)


@pytest.mark.parametrize('options, message', [
    (dict(size=16), '--size must be at least 32, got 16'),
    (dict(size=100), '--size must be a multiple of 32'),
    (dict(experts=5), '--experts must not exceed --batch, 4, got 5'),
    (dict(dtype='fp8'), "--dtype must be one of .* got 'fp8'"),
])
def test_setting_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(**options)
