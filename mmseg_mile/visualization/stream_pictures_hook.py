# SPDX-License-Identifier: Apache-2.0
"""Pictures of a stream beside its ``results.json``."""
from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
from matplotlib.figure import Figure
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmseg.registry import HOOKS
from mmseg.structures import SegDataSample
from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.evaluation.routing_log import (read_routing_log,
                                               routing_log_path)
from mmseg_mile.structures import Task
from .class_iou import figure_class_iou
from .embedding_map import figure_embedding_map, has_embedding_map
from .figure_file import save_figure
from .gate_confusion import figure_gate_confusion
from .panel import Panel
from .picture_store import Entry, PictureStore
from .prediction_gallery import figure_prediction_gallery
from .routing_cost import figure_routing_cost
from .sample_panel import image_miou, make_panel
from .score_matrix import figure_score_matrix
from .stream_curves import figure_stream_curves


@HOOKS.register_module()
class StreamPicturesHook(Hook):
    """Draws the stream's results into ``<work_dir>/pictures``.

    At the end these PNG files, each where its numbers were measured:
    ``score_matrix``, ``stream_curves``, ``class_iou``, ``gate_confusion``,
    ``embedding_map``, ``predictions`` with the first images of every task,
    and ``routing_cost`` with the images whose routing lost most mIoU against
    the expert of their own task.

    The images of the last two are those of the last evaluation row. They
    are written while it is evaluated, into the folders ``predictions`` and
    ``routing_cost``, see :class:`PictureStore`: a row that is resumed does
    not evaluate again what was done before. The main process draws, from
    the images that it evaluated.

    Args:
        images_per_task (int): Rows of each task in ``predictions.png``; 0
            leaves that picture out. Defaults to 2.
        max_tasks (int): Tasks in ``predictions.png`` at most, spread evenly
            over a longer stream. Defaults to 12.
        costly_images (int): Rows of ``routing_cost.png`` at most; 0 leaves
            that picture out. Defaults to 6.
    """

    def __init__(self,
                 images_per_task: int = 2,
                 max_tasks: int = 12,
                 costly_images: int = 6) -> None:
        if images_per_task < 0 or max_tasks < 1 or costly_images < 0:
            raise ValueError(
                'images_per_task and costly_images must be at least 0 and '
                f'max_tasks at least 1, got {images_per_task}, '
                f'{costly_images} and {max_tasks}')
        self.images_per_task = images_per_task
        self.max_tasks = max_tasks
        self.costly_images = costly_images
        self._tasks: List[str] = []
        self._shown: List[str] = []
        self._task: Optional[str] = None
        self._number = 0
        self._in_row = False

    def before_stream_row(self, runner: Runner, task_index: int) -> None:
        """Take up the pictures of this row, forget those of the last."""
        if not is_main_process():
            return
        tasks = runner.train_loop.tasks
        self._tasks = [task.name for task in tasks]
        self._shown = _spread_evenly(self._tasks, self.max_tasks)
        self._task, self._in_row = None, True
        self._predictions, self._costly = _stores(runner)
        for store in (self._predictions, self._costly):
            store.begin_row(self._tasks[task_index],
                            [(task.classes, task.palette) for task in tasks])

    def after_stream_val_iter(
            self,
            runner: Runner,
            task: Task,
            data_samples: Sequence[SegDataSample],
            oracle_samples: Optional[Sequence[SegDataSample]] = None) -> None:
        """Keep the first images of each task, and the costliest of all.

        Args:
            runner (Runner): The runner.
            task (Task): Task that is evaluated.
            data_samples (Sequence[SegDataSample]): Predictions; their
                metainfo holds ``img_path`` and, where there are experts,
                ``expert``, ``ood``, ``classes`` and ``palette`` of
                the prediction.
            oracle_samples (Sequence[SegDataSample], optional): Predictions
                of the task's own expert, the same objects where it was
                chosen; None where there is no such expert. Defaults to
                None.
        """
        # other evaluations, such as that of tools/test.py, keep nothing
        if not is_main_process() or not self._in_row:
            return
        if task.name != self._task:
            self._begin_task(task.name)
        for index, sample in enumerate(data_samples):
            oracle = oracle_samples[index] if oracle_samples else None

            panel = partial(make_panel, task, sample, runner.logger, oracle,
                            runner.train_loop.data_root)
            if (self._number < self.images_per_task
                    and task.name in self._shown):
                self._predictions.add(panel(), self._number)
            if oracle is not None and oracle is not sample:
                cost = image_miou(task, oracle) - image_miou(task, sample)
                self._keep_costly(cost, panel)
            self._number += 1

    def after_stream_row(self, runner: Runner, seconds: float,
                         results: StreamResults) -> None:
        """Note that the row is complete."""
        self._in_row = False

    def after_stream(self, runner: Runner, results: StreamResults) -> None:
        """Draw everything and log where it is."""
        if not is_main_process():
            return
        folder = Path(runner.work_dir) / 'pictures'
        drawn = []
        for name, figure in self._figures(runner, results):
            path = folder / f'{name}.png'
            if figure is None:
                # one of an earlier, shorter stream would be out of date
                path.unlink(missing_ok=True)
            else:
                drawn.append(save_figure(figure, path))
        runner.logger.info(f'pictures: {", ".join(map(str, drawn))}')

    def _begin_task(self, name: str) -> None:
        """Forget what was kept of this task and of those after it.

        A run that was killed evaluates a task anew from its first image,
        and so all that come after it.
        """
        anew = self._tasks[self._tasks.index(name):]
        for store in (self._predictions, self._costly):
            store.drop(anew)
        self._task, self._number = name, 0

    def _keep_costly(self, cost: float, panel: Callable[[], Panel]) -> None:
        """Keep an image if its routing cost more than that of another."""
        if not self.costly_images or not cost > 0:
            return
        kept = self._costly.entries
        if len(kept) == self.costly_images:
            # of equal ones, that which came first stays
            least = min(reversed(kept), key=_cost)
            if cost <= _cost(least):
                return
            self._costly.remove(least)
        self._costly.add(panel(), self._number)

    def _figures(
            self, runner: Runner,
            results: StreamResults) -> Iterator[Tuple[str, Optional[Figure]]]:
        """Name of each picture, and None where there is nothing to draw."""
        yield 'score_matrix', figure_score_matrix(results)
        rows = results.num_finished_rows
        yield 'stream_curves', figure_stream_curves(results) if rows else None
        measured = any(results.class_iou['routed'].values())
        yield 'class_iou', figure_class_iou(results) if measured else None
        yield 'gate_confusion', (
            figure_gate_confusion(results) if results.has_gate else None)
        log = routing_log_path(runner.work_dir, results.tasks[rows - 1])
        images = read_routing_log(log) if rows and log.exists() else []
        yield 'embedding_map', (
            figure_embedding_map(results, images) if has_embedding_map(
                results, images) else None)
        predictions, costly = _stores(runner)
        panels = predictions.panels(runner.logger)
        if panels and len(results.tasks) > self.max_tasks:
            runner.logger.info(f'predictions.png shows {self.max_tasks} of '
                               f'{len(results.tasks)} tasks; set max_tasks of '
                               'StreamPicturesHook for more')
        yield 'predictions', (
            figure_prediction_gallery(panels) if panels else None)
        panels = sorted(
            costly.panels(runner.logger),
            key=lambda panel: panel.routing_cost,
            reverse=True)
        yield 'routing_cost', figure_routing_cost(panels) if panels else None


def _stores(runner: Runner) -> Tuple[PictureStore, PictureStore]:
    """Of the first images of each task, and of the costliest."""
    folder = Path(runner.work_dir) / 'pictures'
    return (PictureStore(folder / 'predictions'),
            PictureStore(folder / 'routing_cost'))


def _cost(entry: Entry) -> float:
    return entry['oracle_miou'] - entry['miou']


def _spread_evenly(names: List[str], at_most: int) -> List[str]:
    if len(names) <= at_most:
        return names
    chosen = np.linspace(0, len(names) - 1, at_most).round()
    return [names[int(i)] for i in chosen]
