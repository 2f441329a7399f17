# SPDX-License-Identifier: Apache-2.0
"""The tasks of a config, learned in another order than they are listed."""
from __future__ import annotations

import json

import pytest
from mmengine.runner import Runner
from run_comparison import library_tensors, results_of

REVERSED = ['infrared', 'night', 'day']

pytestmark = pytest.mark.integration


@pytest.fixture(scope='module')
def listed(learn, tiny_config, tmp_path_factory):
    """Infrared before night, written down so."""
    folder = tmp_path_factory.mktemp('listed')
    return learn(tiny_config(folder / 'run', REVERSED[:2]))


@pytest.fixture(scope='module')
def ordered(learn, tiny_config, tmp_path_factory):
    """The same, by ``train_cfg.order``."""
    folder = tmp_path_factory.mktemp('ordered')
    return learn(
        tiny_config(
            folder / 'run', ('night', 'infrared'),
            train_cfg__order=REVERSED[:2]))


@pytest.fixture
def restore(quick, forget_runner):

    def run(cfg):
        import mmseg_mile  # noqa: F401  registers the components
        forget_runner()
        with quick():
            return Runner.from_cfg(cfg).train_loop.restore()

    return run


def test_tasks_are_learned_in_the_order_that_is_asked_for(ordered):
    assert ordered.diary.learned == REVERSED[:2]
    assert results_of(ordered.work_dir)['tasks'] == REVERSED[:2]


def test_run_equals_one_whose_tasks_are_listed_so(ordered, listed):
    assert library_tensors(ordered.work_dir) == library_tensors(
        listed.work_dir)
    mine, theirs = (results_of(run.work_dir) for run in (ordered, listed))
    for field in ('miou', 'class_iou', 'gate', 'scores', 'setting'):
        assert mine[field] == theirs[field]
    logs = [(run.work_dir / 'routing_log' / 'night.jsonl').read_bytes()
            for run in (ordered, listed)]
    assert logs[0] == logs[1]


def test_listed_order_may_be_spelled_out_on_resume(listed, tiny_config,
                                                   restore):
    cfg = tiny_config(
        listed.work_dir, ('night', 'infrared'),
        resume=True,
        train_cfg__order=REVERSED[:2])
    assert restore(cfg) == 2


def test_task_at_the_end_of_the_order_extends_the_stream(
        ordered, tiny_config, restore):
    cfg = tiny_config(ordered.work_dir, resume=True, train_cfg__order=REVERSED)
    assert restore(cfg) == 2


def test_forgotten_order_is_refused_on_resume(ordered, tiny_config, restore):
    with pytest.raises(ValueError, match='only be continued by tasks at its'):
        restore(
            tiny_config(ordered.work_dir, ('night', 'infrared'), resume=True))


def test_order_without_all_tasks_is_refused(tmp_path, tiny_config, restore):
    with pytest.raises(ValueError, match=r"order must name .*\['day'\]; the"):
        restore(tiny_config(tmp_path / 'run', train_cfg__order=['day']))


def test_start_from_a_task_that_now_comes_later_is_refused(
        tmp_path, tiny_config, restore):
    cfg = tiny_config(tmp_path / 'run', train_cfg__order=REVERSED)
    cfg.train_cfg.tasks[1].init_from = 'day'
    with pytest.raises(ValueError, match="init_from of task 'night' must be"):
        restore(cfg)


def test_results_of_the_first_schema_are_refused(listed, tmp_path, tiny_config,
                                                 restore):
    document = json.loads((listed.work_dir / 'results.json').read_text())
    path = tmp_path / 'old' / 'results.json'
    path.parent.mkdir()
    path.write_text(json.dumps(dict(document, schema=1)))
    with pytest.raises(
            ValueError, match="old/results.json .*must be 3, got 1.*another"):
        restore(tiny_config(tmp_path / 'old', REVERSED[:2], resume=True))
