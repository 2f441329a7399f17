# SPDX-License-Identifier: Apache-2.0
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, List, Optional

import cv2
import numpy as np
import pytest
from mmengine.hooks import Hook

from mmseg.registry import HOOKS
from mmseg.structures import SegDataSample
from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.evaluation.routing_log import (RoutedImage, routing_log_path,
                                               write_routing_log)
from mmseg_mile.structures import Task
from mmseg_mile.visualization import stream_pictures_hook
from mmseg_mile.visualization.stream_pictures_hook import StreamPicturesHook

LOGGER = logging.getLogger('pictures')
CLASSES, PALETTE = ('road', 'sky'), ((90, 0, 0), (0, 90, 0))


def make_task(name: str = 'day') -> Task:
    return Task(name, CLASSES, PALETTE, {}, {})


@pytest.fixture
def runner(tmp_path: Path) -> SimpleNamespace:
    return SimpleNamespace(
        work_dir=str(tmp_path),
        logger=LOGGER,
        train_loop=SimpleNamespace(
            data_root=str(tmp_path),
            tasks=[make_task(name) for name in ('day', 'dusk', 'at night')]))


@pytest.fixture
def make_pair(make_sample: Callable) -> Callable[..., List[SegDataSample]]:
    """Fixture: an image without a sky, a share of which is taken for it.

    The task's own expert would get all right, and of two classes one
    counts: mIoU ``100 - wrong`` against 100.
    """

    def make(wrong: int, name: str = 'x') -> List[SegDataSample]:
        truth = np.zeros((10, 10), int)
        routed = truth.copy()
        routed.flat[:wrong] = 1
        samples = [
            make_sample(truth, prediction, expert=name)
            for prediction in (routed, truth)
        ]
        return samples

    return make


def evaluate(hook: StreamPicturesHook,
             runner: Any,
             name: str,
             samples: List[SegDataSample],
             oracle: Optional[List[SegDataSample]] = None) -> None:
    hook.after_stream_val_iter(
        runner,
        task=make_task(name),
        data_samples=samples,
        oracle_samples=oracle)


def kept(folder: Path) -> List[tuple]:
    """Task and number of every picture that is listed."""
    with open(folder / 'index.json', encoding='utf-8') as file:
        return [(e['task'], e['number']) for e in json.load(file)['pictures']]


def test_hook_is_built_from_a_config() -> None:
    hook = HOOKS.build(dict(type='StreamPicturesHook', images_per_task=1))

    assert hook.images_per_task == 1


@pytest.mark.parametrize('wrong', [
    dict(images_per_task=-1),
    dict(max_tasks=0),
    dict(costly_images=-1),
])
def test_wrong_numbers_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match='images_per_task and costly_images'):
        StreamPicturesHook(**wrong)


def test_all_pictures_are_drawn_and_logged(
        runner: SimpleNamespace, make_results: Callable, make_pair: Callable,
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    results = make_results(2)
    results.set_prototype_distances([[0, 6], [6, 0]])
    image = RoutedImage(
        'dusk', 'day', 'Set', 'a.png', distances=dict(day=3, dusk=5))
    write_routing_log(routing_log_path(tmp_path, 'dusk'), [image])
    hook = StreamPicturesHook()
    hook.before_stream_row(runner, task_index=1)
    routed, own = make_pair(wrong=30, name='dusk')
    evaluate(hook, runner, 'day', [routed], [own])
    hook.after_stream_row(runner, seconds=1, results=results)
    with caplog.at_level(logging.INFO):
        hook.after_stream(runner, results=results)

    names = ('score_matrix', 'stream_curves', 'class_iou', 'gate_confusion',
             'embedding_map', 'predictions', 'routing_cost')
    for name in names:
        path = tmp_path / 'pictures' / f'{name}.png'
        assert cv2.imread(str(path)).std() > 0
        assert str(path) in caplog.text


def test_what_was_not_measured_is_not_drawn(runner: SimpleNamespace,
                                            tmp_path: Path) -> None:
    StreamPicturesHook().after_stream(
        runner, results=StreamResults.new('s', 'm', 0, ['a', 'b']))

    assert [p.name for p in (tmp_path / 'pictures').iterdir()
            ] == ['score_matrix.png']


def test_picture_of_what_is_no_more_is_removed(runner: SimpleNamespace,
                                               make_results: Callable,
                                               tmp_path: Path) -> None:
    old = tmp_path / 'pictures' / 'routing_cost.png'
    old.parent.mkdir()
    old.touch()
    StreamPicturesHook().after_stream(runner, results=make_results(2))

    assert not old.exists()


def test_first_images_of_each_task_in_the_last_row_are_kept(
        runner: SimpleNamespace, make_sample: Callable,
        tmp_path: Path) -> None:
    hook = StreamPicturesHook(images_per_task=2)
    for row in range(2):
        hook.before_stream_row(runner, task_index=row)
        for name in ('day', 'dusk'):
            for batch in range(2):
                evaluate(hook, runner, name, [
                    make_sample(expert=f'{name} {row} {batch} {i}')
                    for i in range(3 - batch * 2)
                ])
    folder = tmp_path / 'pictures' / 'predictions'

    assert kept(folder) == [('day', 0), ('day', 1), ('dusk', 0), ('dusk', 1)]
    index = json.loads((folder / 'index.json').read_text('utf-8'))
    assert index['after'] == 'dusk'
    assert [e['expert'] for e in index['pictures']
            ] == ['day 1 0 0', 'day 1 0 1', 'dusk 1 0 0', 'dusk 1 0 1']
    assert {e['file'] for e in index['pictures']} == {'image.png'}


def test_long_stream_shows_tasks_evenly(
        runner: SimpleNamespace, make_results: Callable, make_sample: Callable,
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [f't{index}' for index in range(9)]
    runner.train_loop.tasks = [make_task(name) for name in names]
    hook = StreamPicturesHook(images_per_task=1, max_tasks=3)
    hook.before_stream_row(runner, task_index=8)
    for name in names:
        evaluate(hook, runner, name, [make_sample(expert=name)])
    with caplog.at_level(logging.INFO):
        hook.after_stream(runner, results=make_results(9))

    assert kept(tmp_path / 'pictures' / 'predictions') == [('t0', 0),
                                                           ('t4', 0),
                                                           ('t8', 0)]
    assert '3 of 9 tasks' in caplog.text


def costly_run(runner: SimpleNamespace, hook: StreamPicturesHook,
               costs: Dict[str, List[int]], make_pair: Callable) -> None:
    for name, wrong in costs.items():
        for count in wrong:
            pair = make_pair(count)
            evaluate(hook, runner, name, pair[:1], pair[1:])


def test_images_that_routing_cost_most_are_kept(runner: SimpleNamespace,
                                                make_pair: Callable,
                                                tmp_path: Path) -> None:
    hook = StreamPicturesHook(costly_images=3)
    hook.before_stream_row(runner, task_index=2)
    costly_run(
        runner,
        hook,
        # of equal ones the first stays
        {
            'day': [20, 0, 20, 40],
            'dusk': [5, 30],
            'at night': [20]
        },
        make_pair)
    folder = tmp_path / 'pictures' / 'routing_cost'

    assert kept(folder) == [('day', 0), ('day', 3), ('dusk', 1)]
    entry = json.loads((folder / 'index.json').read_text('utf-8'))['pictures']
    assert [(e['miou'], e['oracle_miou']) for e in entry] == [(80, 100),
                                                              (60, 100),
                                                              (70, 100)]


def test_costliest_image_stands_on_top(runner: SimpleNamespace,
                                       make_pair: Callable, tmp_path: Path,
                                       make_results: Callable,
                                       drawn: list) -> None:
    hook = StreamPicturesHook()
    hook.before_stream_row(runner, task_index=2)
    costly_run(runner, hook, {'day': [10, 40], 'dusk': [20]}, make_pair)
    hook.after_stream(runner, results=make_results(3))

    lost = [
        text.get_text() for axes in drawn[-1].axes for text in axes.texts
        if 'lost' in text.get_text()
    ]
    assert lost == [f'{points}.0 points lost' for points in (40, 20, 10)]


def test_right_routing_costs_nothing(runner: SimpleNamespace,
                                     make_sample: Callable, tmp_path: Path,
                                     make_results: Callable) -> None:
    hook = StreamPicturesHook()
    hook.before_stream_row(runner, task_index=0)
    sample = make_sample(prediction=np.ones((30, 40), int), expert='day')
    evaluate(hook, runner, 'day', [sample], [sample])
    hook.after_stream(runner, results=make_results(1))

    assert not (tmp_path / 'pictures' / 'routing_cost').exists()
    assert not (tmp_path / 'pictures' / 'routing_cost.png').exists()


@pytest.mark.parametrize('stop', range(1, 6))
def test_stopped_row_keeps_the_images_of_an_uninterrupted_one(
        runner: SimpleNamespace, make_pair: Callable, tmp_path: Path,
        stop: int) -> None:
    costs = {'day': [10, 40], 'dusk': [50, 20], 'at night': [30, 60]}
    images = [(name, i) for name in costs for i in range(2)]

    def run(parts: List[List[tuple]], folder: Path) -> None:
        runner.work_dir = str(folder)
        for part in parts:
            hook = StreamPicturesHook(images_per_task=1, costly_images=2)
            hook.before_stream_row(runner, task_index=2)
            for name, i in part:
                costly_run(runner, hook, {name: [costs[name][i]]}, make_pair)

    # finished tasks are not evaluated again, an unfinished one anew
    rest = images[stop // 2 * 2:]
    run([images], tmp_path / 'whole')
    run([images[:stop], rest], tmp_path / 'stopped')

    whole, stopped = ({
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob('*.*')
    } for folder in (tmp_path / 'whole', tmp_path / 'stopped'))
    assert whole == stopped
    assert kept(tmp_path / 'whole/pictures/routing_cost') == [('dusk', 0),
                                                              ('at night', 1)]


def test_row_that_begins_anew_forgets_what_comes_later(runner: SimpleNamespace,
                                                       make_pair: Callable,
                                                       tmp_path: Path) -> None:
    # a changed setting discards the unfinished row, but not its pictures
    for costs in ({'day': [10], 'dusk': [90, 80]}, {'day': [30], 'dusk': [5]}):
        hook = StreamPicturesHook(costly_images=2)
        hook.before_stream_row(runner, task_index=1)
        costly_run(runner, hook, costs, make_pair)

    assert kept(tmp_path / 'pictures' / 'routing_cost') == [('day', 0),
                                                            ('dusk', 0)]


def test_evaluation_outside_a_row_keeps_nothing(runner: SimpleNamespace,
                                                make_sample: Callable,
                                                make_results: Callable,
                                                tmp_path: Path) -> None:
    hook = StreamPicturesHook()
    evaluate(hook, runner, 'day', [make_sample()])
    hook.before_stream_row(runner, task_index=0)
    hook.after_stream_row(runner, seconds=1, results=make_results(1))
    evaluate(hook, runner, 'day', [make_sample()])

    assert not list(tmp_path.rglob('index.json'))


def test_other_processes_draw_nothing(runner: SimpleNamespace,
                                      make_results: Callable,
                                      make_sample: Callable, tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_pictures_hook, 'is_main_process', lambda: False)
    hook = StreamPicturesHook()
    hook.before_stream_row(runner, task_index=0)
    evaluate(hook, runner, 'day', [make_sample()])
    hook.after_stream_row(runner, seconds=1, results=make_results(2))
    hook.after_stream(runner, make_results(2))

    assert not (tmp_path / 'pictures').exists()


class StopInRow(Hook):
    """Ends a run at an image of the second task in the last row."""

    def before_stream_row(self, runner: Any, task_index: int) -> None:
        self.row = task_index

    def after_stream_val_iter(self, runner: Any, task: Task,
                              data_samples: list,
                              oracle_samples: list) -> None:
        if (self.row, task.name) == (1, 'night'):
            raise KeyboardInterrupt


@pytest.mark.integration
def test_killed_stream_ends_with_the_same_pictures(learn: Callable,
                                                   tiny_config: Callable,
                                                   tmp_path: Path) -> None:

    def make(name: str) -> Any:
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

    whole, stopped = ({
        p.relative_to(tmp_path / name).as_posix(): p.read_bytes()
        for p in (tmp_path / name / 'pictures').rglob('*.*')
    } for name in ('whole', 'stopped'))
    assert whole == stopped
    assert kept(tmp_path / 'stopped/pictures/predictions') == [('day', 0),
                                                               ('night', 0)]
    assert 'pictures/routing_cost.png' in whole
