# SPDX-License-Identifier: Apache-2.0
"""Pictures and report that a stream leaves, also a killed one."""
from __future__ import annotations

import logging
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from mmengine.hooks import Hook
from mmengine.runner import Priority

from mmseg.registry import HOOKS
from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.evaluation.routing_log import (RoutedImage, routing_log_path,
                                               write_routing_log)
from mmseg_mile.visualization import hooks
from mmseg_mile.visualization.gallery import read_panels
from mmseg_mile.visualization.hooks import StreamPicturesHook
from mmseg_mile.visualization.report import kept_folder

LOGGER = logging.getLogger('pictures')
TASKS = ('day', 'dusk', 'at night')


@pytest.fixture
def runner(tmp_path, make_task):
    return SimpleNamespace(
        work_dir=str(tmp_path),
        logger=LOGGER,
        train_loop=SimpleNamespace(
            data_root=str(tmp_path), tasks=[make_task(n) for n in TASKS]))


@pytest.fixture
def evaluate(runner, make_task, make_sample):
    """``evaluate(hook, task, wrong, ...)``: an image, so many wrong pixels.

    The image holds no sky, for which they are taken, and the task's own
    expert gets all right: of two classes one counts, so that the mIoU is
    ``100 - wrong`` against 100. None is an image that was routed right.
    """

    def run(hook, name, *counts):
        for wrong in counts:
            truth = np.zeros((10, 10), int)
            routed = truth.copy()
            routed.flat[:wrong or 0] = 1
            routed, own = (
                make_sample(truth, prediction, expert=f'for {name}')
                for prediction in (routed, truth))
            hook.after_stream_val_iter(
                runner,
                task=make_task(name),
                data_samples=[routed],
                oracle_samples=[routed if wrong is None else own])

    return run


def kept(folder, kind, after='at night'):
    """Task, number and mIoU of every panel."""
    panels = read_panels(kept_folder(folder, after) / kind, TASKS)
    return [(p.task, p.number, p.miou) for p in panels]


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob('*.*') if path.is_file()
    }


def finish(hook, runner, results):
    """Save the results as the loop does, and end the stream."""
    results.save(f'{runner.work_dir}/results.json')
    hook.after_stream(runner, results=results)


@pytest.mark.parametrize('wrong', [
    dict(images_per_task=-1),
    dict(max_tasks=0),
    dict(costly_images=-1),
])
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match='images_per_task and costly_images'):
        HOOKS.build(dict(type='StreamPicturesHook', **wrong))


def test_all_pictures_are_drawn_and_logged(runner, make_results, evaluate,
                                           tmp_path, caplog):
    results = make_results(TASKS)
    image = RoutedImage(
        'at night', 'day', 'Set', 'a.png', distances=dict.fromkeys(TASKS, 5))
    write_routing_log(routing_log_path(tmp_path, 'at night'), [image])
    hook = StreamPicturesHook()
    hook.before_stream_row(runner, task_index=2)
    evaluate(hook, 'day', 30)
    hook.after_stream_row(runner, seconds=1, results=results)
    with caplog.at_level(logging.INFO):
        finish(hook, runner, results)
    for name in ('score_matrix', 'stream_curves', 'class_iou',
                 'gate_confusion', 'embedding_map', 'predictions',
                 'routing_cost'):
        path = tmp_path / 'pictures' / f'{name}.png'
        assert cv2.imread(str(path)).std() > 0
        assert str(path) in caplog.text


def test_what_was_not_measured_is_not_drawn(runner, tmp_path):
    # one of an earlier, shorter stream would be out of date
    old = tmp_path / 'pictures' / 'routing_cost.png'
    old.parent.mkdir()
    old.touch()
    finish(StreamPicturesHook(), runner, StreamResults.new('s', 'm', 0, TASKS))
    assert [path.name for path in (tmp_path / 'pictures').iterdir()
            ] == ['score_matrix.png']


def test_first_images_of_each_task_in_the_last_row_are_kept(
        runner, evaluate, tmp_path):
    hook = StreamPicturesHook(images_per_task=2, costly_images=0)
    for row in (1, 2):
        hook.before_stream_row(runner, task_index=row)
        for name in TASKS[:2]:
            evaluate(hook, name, 10 * row, None, 30)
    assert kept(tmp_path, 'predictions') == [('day', 0, 80), ('day', 1, 100),
                                             ('dusk', 0, 80), ('dusk', 1, 100)]
    assert not kept(tmp_path, 'predictions', after='dusk')
    assert not kept(tmp_path, 'routing_cost')


def test_long_stream_shows_tasks_evenly(runner, make_task, make_results,
                                        evaluate, tmp_path, caplog):
    names = tuple(f't{index}' for index in range(9))
    runner.train_loop.tasks = [make_task(name) for name in names]
    hook = StreamPicturesHook(images_per_task=1, max_tasks=3)
    hook.before_stream_row(runner, task_index=8)
    for name in names:
        evaluate(hook, name, None)
    with caplog.at_level(logging.INFO):
        finish(hook, runner, make_results(names))
    folder = kept_folder(tmp_path, 't8') / 'predictions'
    assert sorted(p.name for p in folder.iterdir()) == ['t0', 't4', 't8']
    assert '3 of 9 tasks' in caplog.text


def test_images_that_routing_cost_most_are_kept(runner, evaluate, tmp_path):
    hook = StreamPicturesHook(costly_images=3)
    hook.before_stream_row(runner, task_index=2)
    # of equal ones the first stays
    evaluate(hook, 'day', 20, None, 20, 40)
    evaluate(hook, 'dusk', 5, 30)
    evaluate(hook, 'at night', 20)
    assert kept(tmp_path, 'routing_cost') == [('day', 0, 80), ('day', 3, 60),
                                              ('dusk', 1, 70)]


@pytest.mark.parametrize('stop', range(1, 6))
def test_stopped_row_keeps_the_images_of_an_uninterrupted_one(
        runner, evaluate, tmp_path, stop):
    costs = {'day': [10, 40], 'dusk': [50, 20], 'at night': [30, 60]}
    images = [(name, wrong) for name, each in costs.items() for wrong in each]

    def run(parts, folder):
        runner.work_dir = str(folder)
        for part in parts:
            hook = StreamPicturesHook(images_per_task=1, costly_images=2)
            hook.before_stream_row(runner, task_index=2)
            for name, wrong in part:
                evaluate(hook, name, wrong)

    # finished tasks are not evaluated again, an unfinished one anew
    rest = images[stop // 2 * 2:]
    run([images], tmp_path / 'whole')
    run([images[:stop], rest], tmp_path / 'stopped')
    assert files(tmp_path / 'whole') == files(tmp_path / 'stopped')
    assert kept(tmp_path / 'whole', 'routing_cost') == [('dusk', 0, 50),
                                                        ('at night', 1, 40)]


def test_row_that_begins_anew_forgets_what_comes_later(runner, evaluate,
                                                       tmp_path):
    # a changed setting discards the unfinished row, but not its pictures
    for costs in ({'day': [10], 'dusk': [90, 80]}, {'day': [30], 'dusk': [5]}):
        hook = StreamPicturesHook(costly_images=2)
        hook.before_stream_row(runner, task_index=2)
        for name, wrong in costs.items():
            evaluate(hook, name, *wrong)
    assert kept(tmp_path, 'routing_cost') == [('day', 0, 70), ('dusk', 0, 95)]


def test_broken_picture_ends_no_training(runner, evaluate, tmp_path, caplog):
    hook = StreamPicturesHook()
    hook.before_stream_row(runner, task_index=2)
    evaluate(hook, 'day', 10, 20)
    path = kept_folder(tmp_path, 'at night') / 'routing_cost/day/000000.npz'
    path.write_bytes(b'')
    evaluate(hook, 'dusk', 30)
    assert str(path) in caplog.text
    path.unlink()
    assert len(kept(tmp_path, 'routing_cost')) == 2


def test_evaluation_outside_a_row_keeps_nothing(runner, evaluate, tmp_path,
                                                make_results):
    hook = StreamPicturesHook()
    evaluate(hook, 'day', 10)
    hook.before_stream_row(runner, task_index=2)
    hook.after_stream_row(runner, seconds=1, results=make_results(TASKS))
    evaluate(hook, 'day', 10)
    assert not (tmp_path / 'pictures').exists()


def test_other_processes_write_nothing(runner, evaluate, tmp_path,
                                       make_results, monkeypatch):
    monkeypatch.setattr(hooks, 'is_main_process', lambda: False)
    hook = StreamPicturesHook()
    hook.before_stream_row(runner, task_index=2)
    evaluate(hook, 'day', 10)
    for each in (hook, HOOKS.build(dict(type='StreamReportHook'))):
        each.after_stream(runner, make_results(TASKS))
    assert [path.name for path in tmp_path.iterdir()] == ['image.png']


# -- report ---------------------------------------------------------------


def test_report_is_written_after_the_pictures_and_logged(make_run, caplog):
    folder = make_run()
    hook = HOOKS.build(dict(type='StreamReportHook'))
    # mmengine calls hooks of a smaller number first
    levels = [Priority[h.priority].value for h in (StreamPicturesHook(), hook)]
    assert levels[0] < levels[1]
    results = StreamResults.load(folder / 'results.json')
    runner = SimpleNamespace(work_dir=str(folder), logger=LOGGER)
    with caplog.at_level(logging.INFO):
        hook.after_stream(runner, results)
    assert (folder / 'report.html').is_file()
    assert str(folder / 'report.html') in caplog.text
    path = kept_folder(folder, 'night') / 'predictions/day/000000.npz'
    path.write_bytes(b'')
    hook.after_stream(runner, results)
    assert f'there is no report: {path}' in caplog.text


# -- in a stream ----------------------------------------------------------


class StopInRow(Hook):
    """Ends a run at an image of the second task in the last row."""

    def before_stream_row(self, runner, task_index):
        self.row = task_index

    def after_stream_val_iter(self, runner, task, data_samples,
                              oracle_samples):
        if (self.row, task.name) == (1, 'night'):
            raise KeyboardInterrupt


@pytest.mark.integration
def test_killed_stream_ends_with_the_same_pictures(learn, tiny_config,
                                                   tmp_path):

    def make(name):
        return tiny_config(
            tmp_path / name, ('day', 'night'),
            train_cfg__max_iters=3,
            model__init_from='previous',
            model__gate=dict(type='RandomGate', _delete_=True),
            custom_hooks=[dict(type='StreamPicturesHook', images_per_task=1)])

    learn(make('whole'))
    cfg = make('stopped')
    with pytest.raises(KeyboardInterrupt):
        learn(cfg, StopInRow())
    cfg.resume = True
    learn(cfg)
    whole, stopped = (
        files(tmp_path / name / 'pictures') for name in ('whole', 'stopped'))
    assert whole == stopped
    assert {
        'predictions.png', 'routing_cost.png',
        'kept/night/predictions/day/000000.npz',
        'kept/night/predictions/night/000000.npz'
    } <= set(whole)
