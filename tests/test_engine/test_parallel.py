# SPDX-License-Identifier: Apache-2.0
"""Tasks learned at the same time, beside tasks learned in a row."""
from __future__ import annotations

import importlib.util
import json
import os
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from mmengine.runner import Runner
from run_comparison import library_files, results_of

import mmseg_mile  # noqa: F401  registers the components
from mmseg_mile.engine import parallel
from mmseg_mile.engine.parallel import (ProcessExecutor, RayExecutor,
                                        build_executor, learn_experts,
                                        run_graph)

TIMEOUT_S = 120
TASKS = ('day', 'night', 'infrared')

# -- executors ----------------------------------------------------------------


def test_calls_have_processes_of_their_own_and_fail_alone():
    executor = ProcessExecutor(2)
    calls = [(os.getpid, ), (os.getpid, ), (os._exit, 3), (int, 'x')]
    first, second, killed, wrong = [executor.submit(*c) for c in calls]
    pids = {first.result(TIMEOUT_S), second.result(TIMEOUT_S)}
    assert len(pids) == 2 and os.getpid() not in pids
    with pytest.raises(BrokenProcessPool):
        killed.result(TIMEOUT_S)
    with pytest.raises(ValueError, match="invalid literal.*'x'"):
        wrong.result(TIMEOUT_S)


def test_ray_runs_each_call_in_a_process_of_its_own():
    ray = pytest.importorskip('ray')
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        executor = RayExecutor(1)
        futures = [executor.submit(os.getpid) for _ in range(3)]
        pids = {future.result(TIMEOUT_S) for future in futures}
        assert len(pids) == 3 and os.getpid() not in pids
        with pytest.raises(ValueError, match='invalid literal'):
            executor.submit(int, 'x').result(TIMEOUT_S)
    finally:
        ray.shutdown()


def test_executor_is_what_is_asked_for_and_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    assert isinstance(build_executor('auto', 1), ProcessExecutor)
    with pytest.raises(ValueError, match=r"pip install 'mmseg_mile\[ray\]'"):
        build_executor('ray', 1)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
    monkeypatch.setattr(os, 'cpu_count', lambda: 8)
    monkeypatch.setattr(parallel, 'RayExecutor', lambda num_cpus: num_cpus)
    assert build_executor('auto', 4) == 2
    assert build_executor('ray', 16) == 1
    for engine, workers in (('dask', 1), ('auto', 0)):
        with pytest.raises(ValueError, match='engine must be one of .*got'):
            build_executor(engine, workers)


# -- the order of tasks -------------------------------------------------------


class Engine:
    """Finishes tasks in the order in which it is told to."""

    def __init__(self, order, broken=()):
        self.order = list(order)
        self.broken = broken
        self.futures = {}
        self.log = []
        self.most = 0

    def submit(self, name):
        self.futures[name] = Future()
        self.log.append(f'begin {name}')
        self.most = max(self.most, len(self.futures))
        self._finish_next()
        return self.futures.get(name) or self.last

    def collect(self, name):
        self.log.append(f'end {name}')
        self._finish_next()

    def _finish_next(self):
        if self.order and self.order[0] in self.futures:
            name = self.order.pop(0)
            self.last = self.futures.pop(name)
            if name in self.broken:
                self.last.set_exception(FloatingPointError('the loss is nan'))
            else:
                self.last.set_result(None)

    def run(self, starts, finished=(), num_workers=9):
        run_graph(starts, finished, self.submit, self.collect, num_workers)
        return self.log


def test_independent_tasks_begin_at_once():
    log = Engine('cab').run(dict(a=None, b=None, c=None))
    assert log[:3] == ['begin a', 'begin b', 'begin c']
    assert [x for x in log if x[0] == 'e'] == ['end c', 'end a', 'end b']


def test_a_task_waits_for_its_start_only():
    assert Engine('abc').run(dict(a=None, b='a', c='b')) == [
        'begin a', 'end a', 'begin b', 'end b', 'begin c', 'end c'
    ]
    log = Engine('bda').run(dict(a=None, b=None, d='b'))
    assert log.index('end b') < log.index('begin d') < log.index('end a')
    log = Engine('b').run(dict(a=None, b='a', c='a'), finished=['a', 'c'])
    assert log == ['begin b', 'end b']


def test_no_more_run_than_there_are_workers():
    engine = Engine('abcd')
    engine.run(dict.fromkeys('abcd'), num_workers=2)
    assert engine.most <= 2


def test_after_a_failure_nothing_begins_and_the_rest_is_collected():
    engine = Engine('ab', broken='a')
    with pytest.raises(
            RuntimeError,
            match="task 'a' failed: the loss is nan\n.*--resume"):
        engine.run(dict(a=None, b=None, c='b', d='a'), num_workers=2)
    assert engine.log == ['begin a', 'begin b', 'end b']


# -- streams ------------------------------------------------------------------


class Inline:
    """Learns a task when it is submitted, in this process."""

    def __init__(self, fails=()):
        self.starts = {}
        self.fails = fails

    def submit(self, function, cfg):
        future, job = Future(), function.keywords
        name = cfg.train_cfg.tasks[job['index']]['name']
        self.starts[name] = job['start']
        if name in self.fails:
            future.set_exception(MemoryError('no room'))
        else:
            future.set_result(function(cfg))
        return future


@pytest.fixture(scope='module')
def learn_apart(quick, forget_runner):
    """``learn_apart(cfg, *fails)``: learns; the start of each task."""

    def run(cfg, *fails):
        forget_runner()
        executor = Inline(fails)
        with quick():
            learn_experts(cfg, executor, num_workers=2)
        return executor.starts

    return run


NO_BASE_TASK = dict(model__backbone__base_training='none')
STREAMS = {
    'base': (dict(model__init_from='base', **NO_BASE_TASK), [None] * 3),
    'previous': (dict(model__init_from='previous', **NO_BASE_TASK),
                 [None, 'day', 'night']),
    'named': (dict(
        model__init_from='base',
        train_cfg__tasks__2__init_from='day',
        **NO_BASE_TASK), [None, None, 'day']),
    # the first task trains the base, before the others begin
    'nearest': (dict(model__init_from='nearest'), ['day', 'night']),
    'gate that is trained, no adapters': (dict(
        model__gate=dict(
            type='AutoencoderGate', hidden=6, num_steps=50, _delete_=True),
        model__init_from='previous',
        model__backbone__lora=None,
        model__backbone__train_norm=False), ['day', 'night']),
}  # yapf: disable


@pytest.mark.integration
@pytest.mark.parametrize('name', STREAMS)
def test_tasks_learned_apart_leave_what_tasks_in_a_row_do(
        learn, learn_apart, quick, forget_runner, tiny_config, tmp_path, name):
    changes, starts = STREAMS[name]
    rows = learn(tiny_config(tmp_path / 'rows', TASKS, **changes)).work_dir
    cfg = tiny_config(tmp_path / 'apart', TASKS, **changes)
    assert list(learn_apart(cfg).values()) == starts
    forget_runner()
    cfg.resume = True
    with quick():
        Runner.from_cfg(cfg).train()
    apart = Path(cfg.work_dir)
    assert library_files(apart) == library_files(rows)
    assert results_of(apart) == results_of(rows)


@pytest.mark.integration
def test_resumed_run_learns_only_what_is_missing(learn_apart, tiny_config,
                                                 tmp_path):
    cfg = tiny_config(
        tmp_path / 'run', model__init_from='base', **NO_BASE_TASK)
    with pytest.raises(RuntimeError, match="task 'night' failed: no room"):
        learn_apart(cfg, 'night')
    with pytest.raises(ValueError, match='add --resume'):
        learn_apart(cfg)
    cfg.resume = True
    assert set(learn_apart(cfg)) == {'night', 'infrared'}
    index = json.loads((tmp_path / 'run/library/library.json').read_text())
    assert index['experts'] == list(TASKS)
    assert learn_apart(cfg) == {}


def one_network(cfg):
    model = cfg.model
    cfg.model = dict(
        type='FineTuneSegmentor',
        data_preprocessor=model.data_preprocessor,
        backbone=model.backbone.backbone,
        decode_head=model.decode_head)


@pytest.mark.integration
@pytest.mark.parametrize('change, message', [
    (one_network, 'FineTuneSegmentor keeps no experts.*train.py'),
    (lambda cfg: cfg.train_cfg.tasks[2].update(init_from='fused'),
     "init_from='fused' of task 'infrared' waits for"),
    (lambda cfg: cfg.train_cfg.update(experts_from='elsewhere'),
     'nothing to learn at the same time.*train.py'),
    (lambda cfg: cfg.train_cfg.update(type='IterBasedTrainLoop'),
     "got 'IterBasedTrainLoop'"),
])
def test_streams_that_cannot_be_learned_apart_are_refused(
        learn_apart, tiny_config, tmp_path, change, message):
    cfg = tiny_config(
        tmp_path / 'run', model__init_from='base', **NO_BASE_TASK)
    change(cfg)
    with pytest.raises(ValueError, match=message):
        learn_apart(cfg)
