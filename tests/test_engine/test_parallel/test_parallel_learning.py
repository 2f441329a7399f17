# SPDX-License-Identifier: Apache-2.0
"""Tasks learned apart, in this process, beside tasks learned in a row."""
from __future__ import annotations

import json
from concurrent.futures import Future

import pytest
from mmengine.runner import Runner

from mmseg_mile.engine.parallel import learn_experts

TASKS = ('day', 'night', 'infrared')
FILES = ('adapter_model.safetensors', 'head.safetensors', 'expert.json',
         'norm.safetensors', 'prototypes.safetensors')

pytestmark = pytest.mark.integration


class Inline:
    """Runs a job when it is submitted, and notes what it starts from."""

    def __init__(self, fails=()):
        self.jobs = {}
        self.fails = fails

    def submit(self, function, job):
        future = Future()
        name = job.cfg.train_cfg.tasks[job.index]['name']
        self.jobs[name] = job.start
        if name in self.fails:
            future.set_exception(MemoryError('no room'))
        else:
            future.set_result(function(job))
        return future


@pytest.fixture(scope='module')
def learn_apart(quick, forget_runner):
    """``learn_apart(cfg, executor)`` learns, but evaluates nothing."""

    def run(cfg, executor):
        import mmseg_mile  # noqa: F401  registers the components
        forget_runner()
        with quick():
            learn_experts(cfg, executor, num_workers=2)
        return executor

    return run


@pytest.fixture(scope='module')
def evaluate(quick, forget_runner):
    """``evaluate(cfg)``: the sequential loop goes on."""

    def run(cfg):
        forget_runner()
        cfg.resume = True
        with quick():
            Runner.from_cfg(cfg).train()

    return run


def results(work_dir):
    document = json.loads((work_dir / 'results.json').read_text())
    del document['cost']['train_seconds']
    return document


@pytest.fixture(scope='module')
def config(tiny_config):
    """``config(work_dir, start)`` over a base that no task trains."""

    def config(work_dir, start):
        cfg = tiny_config(
            work_dir,
            model__backbone__base_training='none',
            model__init_from='base' if start == 'named' else start)
        if start == 'named':
            cfg.train_cfg.tasks[2].init_from = 'day'
        return cfg

    return config


@pytest.fixture(scope='module', params=['base', 'previous', 'named'])
def both(request, learn, learn_apart, evaluate, config, tmp_path_factory):
    """Work dirs of a stream learned in a row, and task by task apart."""
    folder = tmp_path_factory.mktemp('both')
    learn(config(folder / 'rows', request.param))
    cfg = config(folder / 'apart', request.param)
    executor = learn_apart(cfg, Inline())
    evaluate(cfg)
    return folder / 'rows', folder / 'apart', request.param, executor


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('name', FILES)
def test_experts_are_equal(both, task, name):
    rows, apart = ((work_dir / 'library' / task / name).read_bytes()
                   for work_dir in both[:2])
    assert rows == apart


def test_results_are_equal(both):
    rows, apart = map(results, both[:2])
    assert rows == apart


def test_each_task_starts_from_what_the_method_says(both):
    starts = dict(
        base=[None, None, None],
        previous=[None, 'day', 'night'],
        named=[None, None, 'day'])
    assert list(both[3].jobs.values()) == starts[both[2]]


@pytest.fixture
def failed(learn_apart, config, tmp_path):
    """A run that lost its second task, and went no further."""
    cfg = config(tmp_path / 'run', 'base')
    with pytest.raises(RuntimeError, match="task 'night' failed: no room"):
        learn_apart(cfg, Inline(fails=['night']))
    cfg.resume = True
    return cfg


def test_a_resumed_run_learns_only_what_is_missing(failed, learn_apart,
                                                   tmp_path):
    executor = learn_apart(failed, Inline())
    assert set(executor.jobs) == {'night', 'infrared'}
    index = json.loads((tmp_path / 'run/library/library.json').read_text())
    assert index['experts'] == list(TASKS)


def test_a_finished_run_learns_nothing(failed, learn_apart):
    learn_apart(failed, Inline())
    assert learn_apart(failed, Inline()).jobs == {}


def test_what_was_learned_is_not_overwritten_without_resume(
        failed, learn_apart):
    failed.resume = False
    with pytest.raises(ValueError, match='add --resume'):
        learn_apart(failed, Inline())


def test_methods_without_experts_are_refused(learn_apart, tiny_config,
                                             tmp_path):
    cfg = tiny_config(tmp_path / 'run')
    model = cfg.model
    cfg.model = dict(
        type='FineTuneSegmentor',
        data_preprocessor=model.data_preprocessor,
        backbone=model.backbone.backbone,
        decode_head=model.decode_head)
    with pytest.raises(
            ValueError, match='FineTuneSegmentor keeps no experts.*train.py'):
        learn_apart(cfg, Inline())


def test_fused_starts_are_refused(learn_apart, config, tmp_path):
    cfg = config(tmp_path / 'run', 'base')
    cfg.train_cfg.tasks[1].init_from = 'fused'
    with pytest.raises(
            ValueError, match="init_from='fused' of task 'night' waits for"):
        learn_apart(cfg, Inline())
