# SPDX-License-Identifier: Apache-2.0
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, List

import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mmengine.structures import PixelData

from mmseg.registry import HOOKS
from mmseg.structures import SegDataSample
from mmseg_mile.evaluation import StreamResults
from mmseg_mile.structures import Task
from mmseg_mile.visualization import stream_pictures_hook
from mmseg_mile.visualization.stream_pictures_hook import (MAX_WIDTH,
                                                           StreamPicturesHook,
                                                           make_panel)

LOGGER = logging.getLogger('pictures')
CLASSES, PALETTE = ('road', 'sky'), ((90, 0, 0), (0, 90, 0))


def make_task(name: str = 'day') -> Task:
    return Task(name, CLASSES, PALETTE, {}, {})


@pytest.fixture
def runner(tmp_path: Path) -> SimpleNamespace:
    return SimpleNamespace(work_dir=str(tmp_path), logger=LOGGER)


@pytest.fixture
def make_sample(tmp_path: Path) -> Callable[..., SegDataSample]:
    """Fixture: a sample whose image brightens from column to column."""
    path = tmp_path / 'image.png'
    ramp = np.tile(np.arange(0, 80, 2, dtype=np.uint8), (30, 1))
    cv2.imwrite(str(path), ramp)

    def make(truth: Any = None,
             prediction: Any = None,
             **metainfo: Any) -> SegDataSample:
        truth = np.zeros((30, 40), int) if truth is None else truth
        prediction = truth if prediction is None else prediction
        sample = SegDataSample(metainfo={'img_path': str(path), **metainfo})
        sample.gt_sem_seg = PixelData(data=torch.from_numpy(truth)[None])
        sample.pred_sem_seg = PixelData(
            data=torch.from_numpy(prediction)[None])
        return sample

    return make


def test_hook_is_built_from_a_config() -> None:
    hook = HOOKS.build(dict(type='StreamPicturesHook', images_per_task=1))

    assert hook.images_per_task == 1


@pytest.mark.parametrize(
    'wrong',
    [dict(images_per_task=-1), dict(max_tasks=0)])
def test_wrong_numbers_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match='images_per_task must'):
        StreamPicturesHook(**wrong)


def test_all_pictures_are_drawn_and_logged(
        runner: SimpleNamespace, make_results: Callable, make_sample: Callable,
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hook = StreamPicturesHook()
    hook.before_stream_row(runner, task_index=0)
    hook.after_stream_val_iter(
        runner, task=make_task(), data_samples=[make_sample(expert='day')])
    with caplog.at_level(logging.INFO):
        hook.after_stream(runner, results=make_results(2))

    for name in ('score_matrix', 'gate_confusion', 'predictions'):
        path = tmp_path / 'pictures' / f'{name}.png'
        assert cv2.imread(str(path)).std() > 0
        assert str(path) in caplog.text


def test_what_was_not_measured_is_not_drawn(runner: SimpleNamespace,
                                            tmp_path: Path) -> None:
    StreamPicturesHook().after_stream(
        runner, results=StreamResults.new('s', 'm', 0, ['a', 'b']))

    assert [p.name for p in (tmp_path / 'pictures').iterdir()
            ] == ['score_matrix.png']


def test_first_images_of_each_task_in_the_last_row_are_kept(
        runner: SimpleNamespace, make_results: Callable, make_sample: Callable,
        drawn: List[Figure]) -> None:
    hook = StreamPicturesHook(images_per_task=2)
    for row in range(2):
        hook.before_stream_row(runner, task_index=row)
        for name in ('day', 'dusk'):
            for batch in range(2):
                hook.after_stream_val_iter(
                    runner,
                    task=make_task(name),
                    data_samples=[
                        make_sample(expert=f'{name} {row} {batch} {i}')
                        for i in range(3 - batch * 2)
                    ])
    hook.after_stream(runner, results=make_results(2))

    found = [
        text.get_text() for axes in drawn[-1].axes for text in axes.texts
        if 'mIoU' not in text.get_text()
    ]
    assert found == [
        '\u2717 day 1 0 0', '\u2717 day 1 0 1', '\u2717 dusk 1 0 0',
        '\u2717 dusk 1 0 1'
    ]


def test_long_stream_shows_tasks_evenly(
        runner: SimpleNamespace, make_results: Callable, make_sample: Callable,
        drawn: List[Figure], caplog: pytest.LogCaptureFixture) -> None:
    hook = StreamPicturesHook(images_per_task=1, max_tasks=3)
    for index in range(9):
        hook.after_stream_val_iter(
            runner,
            task=make_task(f't{index}'),
            data_samples=[make_sample(expert=f't{index}')])
    with caplog.at_level(logging.INFO):
        hook.after_stream(runner, results=make_results(2))

    experts = [
        text.get_text()[2:] for axes in drawn[-1].axes for text in axes.texts
        if 'mIoU' not in text.get_text()
    ]
    assert experts == ['t0', 't4', 't8']
    assert '3 of 9 tasks' in caplog.text


def test_other_processes_draw_nothing(runner: SimpleNamespace,
                                      make_results: Callable,
                                      make_sample: Callable, tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_pictures_hook, 'is_main_process', lambda: False)
    hook = StreamPicturesHook()
    hook.after_stream_val_iter(runner, make_task(), [make_sample()])
    hook.after_stream(runner, make_results(2))

    assert not (tmp_path / 'pictures').exists()


def test_panel_takes_the_label_space_of_the_expert(
        make_sample: Callable) -> None:
    prediction = np.zeros((30, 40), int)
    panel = make_panel(
        make_task(),
        make_sample(
            prediction=prediction,
            expert='farm',
            unfamiliar=True,
            classes=('weed', ),
            palette=((1, 2, 3), )), LOGGER)

    assert panel.prediction_classes == ('weed', )
    assert panel.expert == 'farm'
    assert panel.unfamiliar
    assert panel.miou == 0


def test_panel_of_a_plain_method_has_the_label_space_of_the_task(
        make_sample: Callable) -> None:
    panel = make_panel(make_task(), make_sample(), LOGGER)

    assert panel.prediction_classes == CLASSES
    assert panel.expert is None
    assert panel.miou == 100


@pytest.mark.parametrize(
    'metainfo',
    [dict(crop_columns=(10, 30)),
     dict(cropped_columns=dict(img=(10, 30)))])
def test_cropped_columns_are_cropped_from_the_image(make_sample: Callable,
                                                    metainfo: dict) -> None:
    panel = make_panel(make_task(),
                       make_sample(truth=np.zeros((30, 20), int), **metainfo),
                       LOGGER)

    assert panel.image[0, :, 0].tolist() == list(range(20, 60, 2))


def test_image_of_another_size_is_brought_to_the_labels(
        make_sample: Callable) -> None:
    panel = make_panel(make_task(), make_sample(truth=np.zeros((15, 20), int)),
                       LOGGER)

    assert panel.image.shape == (15, 20, 3)


def test_large_pictures_are_kept_small(make_sample: Callable) -> None:
    truth = np.zeros((600, 2 * MAX_WIDTH), int)
    panel = make_panel(make_task(), make_sample(truth=truth), LOGGER)

    assert panel.image.shape == (300, MAX_WIDTH, 3)
    assert panel.truth.shape == panel.prediction.shape == (300, MAX_WIDTH)


def test_unreadable_image_does_not_end_the_run(
        make_sample: Callable, caplog: pytest.LogCaptureFixture) -> None:
    panel = make_panel(make_task(), make_sample(img_path='gone.npy'), LOGGER)

    assert (panel.image == 128).all()
    assert 'gone.npy' in caplog.text
