# SPDX-License-Identifier: Apache-2.0
"""A finished run without each of its experts."""
from __future__ import annotations

import json
import math

import pytest
import torch
from analysis_tools import leave_one_out as module
from analysis_tools.leave_one_out import (families, gate_options,
                                          leave_one_out, read_finished,
                                          study_methods)
from fabricated_runs import write_run

from mmseg.registry import TASK_UTILS
from mmseg_mile.engine.task_evaluator import evaluate_forced
from mmseg_mile.evaluation.leave_one_out import (COMPARED, POLICIES, Leak,
                                                 LeaveOneOut)
from mmseg_mile.gates.prototype_gate import PrototypeGate
from mmseg_mile.gates.simple_gates import RandomGate
from mmseg_mile.methods.semla.semla_gate import SemLAGate
from mmseg_mile.structures import Task

TASKS = ('day', 'night', 'infrared')


@pytest.fixture(scope='module')
def done(stream_run, quick, forget_runner, tmp_path_factory):
    """Folder and scores of the tiny stream."""
    out = tmp_path_factory.mktemp('leave_one_out')
    forget_runner()
    with quick():
        results = leave_one_out([stream_run.work_dir], out, log=lambda _: None)
    return out, results


@pytest.fixture
def again(stream_run, quick, forget_runner):
    """``again(out, **options)``: scores, and what was told."""

    def run(out, **options):
        told: list[str] = []
        forget_runner()
        with quick():
            results = leave_one_out([stream_run.work_dir],
                                    out,
                                    log=told.append,
                                    **options)
        return results, told

    return run


def lines_of(out):
    return [
        json.loads(line)
        for line in (out / 'images.jsonl').read_text().splitlines()
    ]


@pytest.mark.integration
def test_files_are_written_and_read(done):
    out, results = done
    for name in ('leave_one_out.json', 'leave_one_out.md', 'leave_one_out.csv',
                 'leave_one_out.png', 'images.jsonl'):
        assert (out / name).stat().st_size > 0
    assert LeaveOneOut.load(out / 'leave_one_out.json').tasks == TASKS
    assert results.families == {name: (name, ) for name in TASKS}


@pytest.mark.integration
def test_oracle_and_nearest_are_those_of_the_run(done, stream_run):
    """The run has forced every expert on every task itself."""
    out, results = done
    cross = json.loads(
        (stream_run.work_dir / 'cross_expert_miou.json').read_text())['miou']
    own = results.values('none', 'oracle')[0]
    assert own == pytest.approx([cross[i][i] for i in range(3)], abs=1e-3)
    compared = 0
    for row, task in enumerate(TASKS):
        chosen = {
            line['expert']
            for line in lines_of(out) if line['method'] == 'nearest'
            and line['removed'] == [task] and line['task'] == task
        }
        if len(chosen) == 1:
            column = TASKS.index(chosen.pop())
            assert column != row
            assert results.values('own', 'nearest')[0, row] == pytest.approx(
                cross[row][column], abs=1e-3)
            compared += 1
    assert compared


@pytest.mark.integration
def test_every_image_is_logged_in_every_cell(done):
    out, results = done
    lines = lines_of(out)
    cells = {(x['task'], tuple(x['removed']), x['method']) for x in lines}
    assert cells == {(s.target, s.removed, s.method)
                     for s in results.runs[0].scores}
    assert len(lines) == 3 * len(cells)
    files = {x['file'] for x in lines if x['task'] == 'night'}
    assert files == {f'night/img/val/{i}.png' for i in range(3)}


@pytest.mark.integration
def test_base_and_heirs_that_saw_the_target_are_told(done):
    _, results = done
    assert Leak(('day', ), 'base', ('day', )) in results.runs[0].leaks
    # the infrared expert is the last: nothing started from it
    assert results.leaks_of('infrared', 'own') == []


@pytest.mark.integration
def test_second_call_computes_nothing(done, again, monkeypatch):
    monkeypatch.setattr(module.Study, '_evaluate', None)
    results, told = again(done[0])
    assert results.runs[0].scores == done[1].runs[0].scores
    assert told == []


@pytest.mark.integration
def test_sweep_computes_only_what_is_new(done, again):
    results, told = again(done[0], taus=[0.1])
    assert told == [f'seed 3, {name}: 1 of 20 cells' for name in TASKS]
    assert results.values('own', 'fused_adapters_tau_0.1').shape == (1, 3)


@pytest.mark.integration
def test_family_of_the_config_is_left_out_together(again, tmp_path):
    results, _ = again(
        tmp_path,
        options={
            'train_cfg.tasks.0.family': 'colour',
            'train_cfg.tasks.1.family': 'colour'
        })
    assert results.families['day'] == ('day', 'night')
    chosen = {
        line['expert']
        for line in lines_of(tmp_path)
        if line['method'] == 'nearest' and line['removed'] == ['day', 'night']
    }
    assert chosen == {'infrared'}


@pytest.mark.integration
def test_padding_at_test_time_is_that_of_the_run(again, stream_run,
                                                 monkeypatch, tmp_path):
    padding = dict(size_divisor=64)
    results, _ = again(
        tmp_path, options={'model.data_preprocessor.test_cfg': padding})
    loop = stream_run.runner.train_loop
    monkeypatch.setattr(loop.model.data_preprocessor, 'test_cfg', padding)
    own = [
        evaluate_forced(loop.model, task, loop._val_loader(task), task.name)
        for task in loop.tasks
    ]
    assert results.values('none', 'oracle')[0] == pytest.approx(own, abs=1e-3)


@pytest.mark.integration
def test_tool_passes_its_options_on(run_tool, stream_config, stream_run,
                                    tmp_path, capsys):
    run_tool('leave_one_out.py', stream_run.work_dir, '--out', tmp_path,
             '--config', stream_config, '--gate', 'top_k=1', 'metric=cosine',
             '--sweep-tau', '0.1')
    printed = capsys.readouterr().out
    assert 'top_k=1, tau=0.4, relative=True, metric=cosine' in printed
    assert "Temperature of SemLA's weights" in printed
    assert 'seed 3, infrared: ' in printed
    assert printed.strip().endswith(
        (tmp_path / 'leave_one_out.md').read_text().strip())


def test_runs_that_do_not_fit_together_are_refused(tmp_path):
    first = write_run(tmp_path / 'a', seed=0)
    with pytest.raises(ValueError, match='holds no results.json'):
        read_finished([tmp_path])
    with pytest.raises(ValueError, match='not different: name each run once'):
        read_finished([first, first])
    other = write_run(tmp_path / 'b', seed=1, method='other')
    with pytest.raises(ValueError, match="is of method 'other'"):
        read_finished([first, other])


def task(name, kind='ACDCDataset', root='data/acdc', family=None, **fields):
    val = dict(dict(type=kind, data_root=root), **fields)
    return Task(name, ('road', ), ((0, 0, 0), ), {}, val, family=family)


def test_one_class_below_one_root_is_a_family():
    found = families([task('fog'), task('city', 'CityDataset'), task('rain')])
    assert found == dict(
        fog=('fog', 'rain'), city=('city', ), rain=('fog', 'rain'))


@pytest.mark.parametrize('other', [
    task('other', root='data/more'),
    task('other', kind='SnowDataset'),
    task('other', family='fog'),
    task('other', family='ACDCDataset')
])
def test_other_class_root_or_family_is_not_of_it(other):
    assert families([task('fog'), other])['fog'] == ('fog', )


def test_named_family_joins_what_lies_apart():
    tasks = [
        task('fog', family='weather'),
        task('rain', 'RainDataset', 'data/rain', 'weather')
    ]
    assert families(tasks)['rain'] == ('fog', 'rain')


def test_wrapped_and_joined_datasets_count_as_what_is_inside():
    inner = dict(type='ACDCDataset', data_root='data/acdc')
    wrapped = task('rain', 'RepeatDataset', times=2, dataset=inner)
    assert families([task('fog'), wrapped])['fog'] == ('fog', 'rain')
    parts = [dict(type='A', data_root='a'), dict(type='B', data_root='b')]
    one = task('one', 'ConcatDataset', datasets=parts)
    two = task('two', 'ConcatDataset', datasets=parts[::-1])
    three = task('three', 'ConcatDataset', datasets=parts[:1])
    assert families([one, two, three]) == dict(
        one=('one', 'two'), two=('one', 'two'), three=('three', ))


@pytest.fixture
def weights_of():
    """``weights_of(method)``: of an image at 1, 2 and 5 from three means."""
    options = gate_options(SemLAGate(top_k=2, tau=1.0, relative=True), {})
    methods = study_methods(options, [0.5])

    def run(name):
        gate = TASK_UTILS.build(dict(methods[name].gate))
        for expert, at in (('day', 0), ('dusk', 3), ('fog', 6)):
            gate.fit(expert, torch.tensor([[at - 1.0], [at + 1.0]]))
        return gate.route(torch.tensor([[1.0]]), [None]).weights[0].tolist()

    return run


def test_weights_of_each_method(weights_of):
    assert weights_of('base') == [0, 0, 0]
    assert weights_of('uniform') == pytest.approx([1 / 3] * 3)
    assert weights_of('nearest') == [1, 0, 0]
    # relative distances 1 and 2, tau 1: softmax of 1 and 1/2
    first = 1 / (1 + math.exp(-0.5))
    assert weights_of('fused') == pytest.approx([first, 1 - first, 0])
    # tau 1/2: softmax of 2 and 1
    first = 1 / (1 + math.exp(-1))
    assert weights_of('fused_adapters_tau_0.5') == pytest.approx(
        [first, 1 - first, 0])


def test_kinds_of_fusion_share_their_weights(weights_of):
    methods = study_methods(gate_options(SemLAGate(), {}), [])
    assert [*methods] == [*COMPARED[1:], *POLICIES]
    for name in ('uniform', 'fused'):
        for suffix, fusion in (('', 'weights'), ('_adapters', 'adapters'),
                               ('_outputs', 'logits')):
            assert methods[name + suffix].fusion == fusion
            assert weights_of(name + suffix) == weights_of(name)
    for name, policy in zip(POLICIES, ('fuse', 'base', 'abstain')):
        assert methods[name].ood_policy == policy
        assert weights_of(name) == weights_of('nearest')


def test_statistics_are_those_of_the_gate_of_the_run():
    gate = PrototypeGate('cosine', num_prototypes=2, ood_quantile=0.9)
    found = gate_options(gate, dict(tau=2.0))
    assert (found['metric'], found['num_prototypes'], found['ood_quantile'],
            found['tau']) == ('cosine', 2, 0.9, 2.0)
    # a run without prototypes gets those of SemLA
    assert gate_options(RandomGate(), {})['metric'] == 'euclidean'


@pytest.mark.parametrize('change, message', [
    (dict(temperature=1), "--gate has no option 'temperature', options are"),
    (dict(weighting='uniform'), "--gate has no option 'weighting'"),
    (dict(tau=0), 'gate.tau must be > 0, got 0'),
    (dict(metric='far'), 'gate.metric must be one of'),
])
def test_wrong_option_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        gate_options(PrototypeGate(), change)
