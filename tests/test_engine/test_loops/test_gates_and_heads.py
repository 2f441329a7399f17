# SPDX-License-Identifier: Apache-2.0
"""Streams of experts under other gates, and of experts without adapters."""
from __future__ import annotations

import json
from concurrent.futures import Future

import pytest
import torch
from mmengine.hooks import Hook
from run_comparison import differences, library_tensors
from safetensors.torch import load_file

from mmseg_mile.engine.parallel import learn_experts

DOMAINS = ('day', 'night')
EXPERT_GATE = dict(
    model__gate=dict(
        type='AutoencoderGate', hidden=6, num_steps=150, _delete_=True))
HEADS_ONLY = dict(
    model__backbone__lora=None, model__backbone__train_norm=False)

pytestmark = pytest.mark.integration


class Inline:
    """Learns a task when it is submitted, in this process."""

    def submit(self, function, job):
        future = Future()
        future.set_result(function(job))
        return future


class Stop(Hook):
    """Ends the process inside the second task."""

    def __init__(self):
        self.index = None

    def before_stream_task(self, runner, tasks, index):
        self.index = index

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if (self.index, batch_idx) == (1, 3):
            raise KeyboardInterrupt


@pytest.fixture(
    scope='module', params=[EXPERT_GATE, HEADS_ONLY], ids=['gate', 'heads'])
def runs(request, learn, tiny_config, tmp_path_factory):
    """The stream in one go, and interrupted and resumed."""
    root = tmp_path_factory.mktemp('runs')
    whole = learn(tiny_config(root / 'whole', DOMAINS, **request.param))
    cfg = tiny_config(root / 'resumed', DOMAINS, **request.param)
    with pytest.raises(KeyboardInterrupt):
        learn(cfg, Stop())
    cfg.resume = True
    return whole, learn(cfg), request.param


def test_resumed_run_leaves_what_an_uninterrupted_one_does(runs):
    whole, resumed, _ = runs
    assert resumed.diary.learned == ['night']
    assert differences(resumed.work_dir, whole.work_dir) == []


def test_finished_run_is_taken_up_and_predicts_the_same(
        runs, tiny_config, learn):
    whole, resumed, changes = runs
    cfg = tiny_config(resumed.work_dir, DOMAINS, resume=True, **changes)
    assert learn(cfg).diary.learned == []
    assert differences(resumed.work_dir, whole.work_dir) == []


def test_changed_prototypes_are_refused_by_name(runs, tiny_config, learn):
    _, resumed, changes = runs
    path = resumed.work_dir / 'library' / 'day' / 'prototypes.safetensors'
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(ValueError, match='day/prototypes.safetensors is'):
            learn(
                tiny_config(resumed.work_dir, DOMAINS, resume=True, **changes))
    finally:
        path.write_bytes(content)


def test_routing_log_has_the_distances_of_the_stored_gate(runs):
    whole, _, changes = runs
    text = (whole.work_dir / 'routing_log' / 'night.jsonl').read_text()
    for line in map(json.loads, text.splitlines()):
        distances = line['distances']
        assert set(distances) == set(DOMAINS)
        assert line['expert'] == min(distances, key=distances.get)
        # mean squared errors of values between 0 and 1
        assert changes is not EXPERT_GATE or max(distances.values()) <= 1
    stored = load_file(whole.work_dir / 'library/night/prototypes.safetensors')
    state = whole.runner.model.gate.state('night')
    assert set(stored) == set(state)
    assert all(torch.equal(stored[key], state[key]) for key in stored)


def test_tasks_learned_apart_leave_the_same_experts(runs, tiny_config, quick,
                                                    forget_runner, tmp_path):
    whole, _, changes = runs
    forget_runner()
    with quick():
        learn_experts(
            tiny_config(tmp_path / 'apart', DOMAINS, **changes), Inline(), 1)
    apart = library_tensors(tmp_path / 'apart')
    assert apart == library_tensors(whole.work_dir)


def test_every_gate_can_route_the_experts_of_one_run(stream_run, tiny_config,
                                                     learn, tmp_path):
    """Adopted by a gate that errs on purpose, after each task."""
    cfg = tiny_config(
        tmp_path / 'wrong',
        model__gate=dict(type='MismatchedGate', _delete_=True),
        train_cfg__method='wrong',
        train_cfg__experts_from=str(stream_run.work_dir))
    run = learn(cfg)
    assert run.diary.learned == []
    results = json.loads((run.work_dir / 'results.json').read_text())
    confusion = results['gate']['confusion']
    assert [sum(row) for row in confusion] == [3, 3, 3]
    assert [row[i] for i, row in enumerate(confusion)] == [0, 0, 0]
    theirs = json.loads((stream_run.work_dir / 'results.json').read_text())
    assert results['miou']['oracle'] == theirs['miou']['oracle']


def test_oracle_can_evaluate_tasks_to_come(stream_run, tiny_config, learn,
                                           tmp_path):
    cfg = tiny_config(
        tmp_path / 'oracle',
        model__gate=dict(type='OracleGate', fall_back=True, _delete_=True),
        train_cfg__method='oracle',
        train_cfg__experts_from=str(stream_run.work_dir))
    results = json.loads((learn(cfg).work_dir / 'results.json').read_text())
    routed, oracle = (results['miou'][kind] for kind in ('routed', 'oracle'))
    for row in range(3):
        assert routed[row][:row + 1] == oracle[row][:row + 1]
        assert None not in routed[row]
