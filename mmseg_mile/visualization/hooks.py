# SPDX-License-Identifier: Apache-2.0
"""Pictures and report of a stream, beside its ``results.json``."""
from __future__ import annotations

import shutil
from functools import partial
from logging import Logger
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence

import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmseg.registry import HOOKS
from mmseg.structures import SegDataSample
from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.structures import Task
from .gallery import (Panel, image_miou, make_panel, panel_path, read_panels,
                      write_panel)
from .plots import save_figure
from .report import kept_folder, plots_of, read_run, write_report


@HOOKS.register_module()
class StreamPicturesHook(Hook):
    """Draws the stream's results into ``<work_dir>/pictures``.

    At the end these PNG files, each where its numbers were measured:
    ``score_matrix``, ``stream_curves``, ``class_iou``, ``gate_confusion``,
    ``embedding_map``, ``predictions`` with the first images of every task,
    and ``routing_cost`` with the images whose routing lost most mIoU against
    the expert of their own task.

    The images of the last two are those of the last evaluation row. They
    are written while it is evaluated, into ``kept/<task learned last>``: a
    row that is resumed does not evaluate again what was done before. The
    main process draws, from the images that it evaluated.

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
        # points that the routing of each kept image cost, by its file
        self._costs: Dict[Path, float] = {}
        self._in_row = False

    def before_stream_row(self, runner: Runner, task_index: int) -> None:
        """Take up the pictures of this row, forget those of the last."""
        if not is_main_process():
            return
        self._tasks = [task.name for task in runner.train_loop.tasks]
        self._shown = _spread_evenly(self._tasks, self.max_tasks)
        self._task, self._in_row = None, True
        self._folder = kept_folder(runner.work_dir, self._tasks[task_index])
        for folder in self._folder.parent.glob('*'):
            if folder != self._folder:
                shutil.rmtree(folder)

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
            self._begin_task(task.name, runner.logger)
        for index, sample in enumerate(data_samples):
            oracle = oracle_samples[index] if oracle_samples else None
            panel = partial(make_panel, task, self._number, sample,
                            runner.logger, oracle, runner.train_loop.data_root)
            if (self._number < self.images_per_task
                    and task.name in self._shown):
                write_panel(self._folder / 'predictions', panel())
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
        if len(results.tasks) > self.max_tasks and self.images_per_task:
            runner.logger.info(f'predictions.png shows {self.max_tasks} of '
                               f'{len(results.tasks)} tasks; set max_tasks of '
                               'StreamPicturesHook for more')
        drawn = []
        run = read_run(runner.work_dir, runner.logger)
        for name, plot in plots_of(run).items():
            path = folder / f'{name}.png'
            if plot is None:
                # one of an earlier, shorter stream would be out of date
                path.unlink(missing_ok=True)
            else:
                drawn.append(str(save_figure(plot(), path)))
        runner.logger.info(f'pictures: {", ".join(drawn)}')

    def _begin_task(self, name: str, logger: Logger) -> None:
        """Forget what was kept of this task and of those after it.

        A run that was killed evaluates a task anew from its first image,
        and so all that come after it.
        """
        self._task, self._number = name, 0
        for task in self._tasks[self._tasks.index(name):]:
            for kind in ('predictions', 'routing_cost'):
                shutil.rmtree(self._folder / kind / task, ignore_errors=True)
        folder = self._folder / 'routing_cost'
        self._costs = {
            panel_path(folder, panel): panel.routing_cost
            for panel in read_panels(folder, self._tasks, logger)
        }

    def _keep_costly(self, cost: float, panel: Callable[[], Panel]) -> None:
        """Keep an image if its routing cost more than that of another."""
        if not self.costly_images or not cost > 0:
            return
        if len(self._costs) == self.costly_images:
            # of equal ones, that which came first stays
            least = min(reversed(self._costs), key=self._costs.__getitem__)
            if cost <= self._costs[least]:
                return
            del self._costs[least]
            least.unlink()
        path = write_panel(self._folder / 'routing_cost', panel())
        self._costs[path] = cost


@HOOKS.register_module()
class StreamReportHook(Hook):
    """Writes ``report.html`` into the work dir at the end of a stream.

    Everything in it is read from what the run left there; ``tools/report.py``
    writes the same page at any time.
    """

    # after the pictures that the report shows
    priority = 'VERY_LOW'

    def after_stream(self, runner: Runner, results: StreamResults) -> None:
        """Write the report and log where it is.

        A report that cannot be written is a warning: the results are there.
        """
        if not is_main_process():
            return
        try:
            path = write_report(runner.work_dir)
        except (OSError, ValueError) as error:
            runner.logger.warning(f'there is no report: {error}')
        else:
            runner.logger.info(f'report: {path}')


def _spread_evenly(names: List[str], at_most: int) -> List[str]:
    if len(names) <= at_most:
        return names
    chosen = np.linspace(0, len(names) - 1, at_most).round()
    return [names[int(i)] for i in chosen]
