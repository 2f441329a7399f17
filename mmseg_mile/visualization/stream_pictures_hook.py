# SPDX-License-Identifier: Apache-2.0
"""Pictures of a stream beside its ``results.json``."""
from __future__ import annotations

from logging import Logger
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import cv2
import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from mmseg.registry import HOOKS
from mmseg.structures import SegDataSample
from mmseg_mile.evaluation import DomainIoU, StreamResults
from mmseg_mile.structures import Task
from .display_image import read_image_for_display
from .gate_confusion import draw_gate_confusion
from .prediction_gallery import Panel, draw_prediction_gallery
from .score_matrix import draw_score_matrix

# Width of a kept picture in pixels; more would not show in the gallery.
MAX_WIDTH = 640


@HOOKS.register_module()
class StreamPicturesHook(Hook):
    """Draws the stream's results into ``<work_dir>/pictures``.

    ``score_matrix.png``, ``gate_confusion.png`` where routing was measured,
    and ``predictions.png`` with the first images of every task as they were
    predicted in the last evaluation row. The main process draws, from the
    images that it evaluated.

    Args:
        images_per_task (int): Rows of each task in ``predictions.png``; 0
            leaves that picture out. Defaults to 2.
        max_tasks (int): Tasks in ``predictions.png`` at most, spread evenly
            over a longer stream. Defaults to 12.
    """

    def __init__(self, images_per_task: int = 2, max_tasks: int = 12) -> None:
        if images_per_task < 0 or max_tasks < 1:
            raise ValueError(
                'images_per_task must be at least 0 and max_tasks at least '
                f'1, got {images_per_task} and {max_tasks}')
        self.images_per_task = images_per_task
        self.max_tasks = max_tasks
        self._panels: Dict[str, List[Panel]] = {}

    def before_stream_row(self, runner: Runner, task_index: int) -> None:
        """Forget the images of the previous row."""
        self._panels = {}

    def after_stream_val_iter(self, runner: Runner, task: Task,
                              data_samples: Sequence[SegDataSample]) -> None:
        """Keep the first images of each task, with their predictions.

        Args:
            runner (Runner): The runner.
            task (Task): Task that is evaluated.
            data_samples (Sequence[SegDataSample]): Predictions; their
                metainfo holds ``img_path`` and, where there are experts,
                ``expert``, ``unfamiliar``, ``classes`` and ``palette`` of
                the prediction.
        """
        if not is_main_process():
            return
        panels = self._panels.setdefault(task.name, [])
        for sample in data_samples[:self.images_per_task - len(panels)]:
            panels.append(make_panel(task, sample, runner.logger))

    def after_stream(self, runner: Runner, results: StreamResults) -> None:
        """Draw everything and log where it is."""
        if not is_main_process():
            return
        folder = Path(runner.work_dir) / 'pictures'
        drawn = [draw_score_matrix(results, folder / 'score_matrix.png')]
        if results.has_gate:
            drawn.append(
                draw_gate_confusion(results, folder / 'gate_confusion.png'))
        panels = [
            panel for name in self._shown_tasks(runner)
            for panel in self._panels[name]
        ]
        if panels:
            drawn.append(
                draw_prediction_gallery(panels, folder / 'predictions.png'))
        runner.logger.info(f'pictures: {", ".join(map(str, drawn))}')

    def _shown_tasks(self, runner: Runner) -> List[str]:
        names = list(self._panels)
        if len(names) <= self.max_tasks:
            return names
        runner.logger.info(
            f'predictions.png shows {self.max_tasks} of {len(names)} tasks; '
            'set max_tasks of StreamPicturesHook for more')
        chosen = np.linspace(0, len(names) - 1, self.max_tasks).round()
        return [names[int(i)] for i in chosen]


def make_panel(task: Task, sample: SegDataSample, logger: Logger) -> Panel:
    """The image, ground truth and prediction of one data sample.

    An image that cannot be shown, such as an array file, is left grey: a
    picture is no reason to end a training.
    """
    truth = _label_map(sample.gt_sem_seg.data)
    prediction = _label_map(sample.pred_sem_seg.data)
    classes = tuple(sample.get('classes') or task.classes)
    palette = sample.get('palette') or task.palette
    score = DomainIoU(task.classes)
    score.update(prediction, classes, truth)

    try:
        image = _as_evaluated(
            read_image_for_display(sample.img_path), sample, truth.shape)
    except (OSError, ValueError) as error:
        logger.warning(f'an image is left out of predictions.png: {error}')
        image = np.full((*truth.shape, 3), 128, np.uint8)
    # The score is that of the full size; only what is shown shrinks.
    return Panel(
        _shrink(image, cv2.INTER_AREA), _shrink(truth, cv2.INTER_NEAREST),
        _shrink(prediction, cv2.INTER_NEAREST), task.classes, task.palette,
        classes, palette, task.name, sample.get('expert'),
        sample.get('unfamiliar'), score.miou())


def _label_map(data: Tensor) -> np.ndarray:
    return data.squeeze(0).cpu().numpy().astype(np.int16)


def _as_evaluated(image: np.ndarray, sample: SegDataSample,
                  shape: tuple) -> np.ndarray:
    """The part and size of the image on disk that the labels cover."""
    columns = _cropped_columns(sample)
    if image.shape[:2] != shape and columns is not None:
        image = image[:, columns[0]:columns[1]]
    if image.shape[:2] != shape:
        image = cv2.resize(image, shape[::-1], interpolation=cv2.INTER_AREA)
    return image


def _cropped_columns(sample: SegDataSample) -> Optional[Sequence[int]]:
    # CropColumns notes a range per key of the sample.
    per_key = sample.get('cropped_columns') or {}
    return per_key.get('img', sample.get('crop_columns'))


def _shrink(picture: np.ndarray, interpolation: int) -> np.ndarray:
    high, wide = picture.shape[:2]
    if wide <= MAX_WIDTH:
        return picture
    return cv2.resize(
        picture, (MAX_WIDTH, max(1, high * MAX_WIDTH // wide)),
        interpolation=interpolation)
