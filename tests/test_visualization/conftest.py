# SPDX-License-Identifier: Apache-2.0
"""Invented runs, and the look at a figure before it becomes pixels."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from mmengine.structures import PixelData

from mmseg.structures import SegDataSample
from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.evaluation.routing_log import (RoutedImage, routing_log_path,
                                               write_routing_log)
from mmseg_mile.structures import Task
from mmseg_mile.visualization.gallery import LabelMap, Panel, write_panel
from mmseg_mile.visualization.report import kept_folder

# Names are text, whatever they look like.
CLASSES, PALETTE = ('road', '<b>sky</b>'), ((90, 0, 0), (0, 90, 0))
LONG_NAMES = [
    'day', 'dusk', 'idd_lite', 'freiburg-thermal', 'acdc-night', 'cityscapes',
    'bdd100k', 'muses-clear-day', 'a very long name of a task', 'WWWWWWWWWWWW',
    *(f'domain {i}' for i in range(40))
]
IMAGES = 4


@pytest.fixture
def make_results() -> Callable[..., StreamResults]:
    """``make_results(tasks, rows, gate)``: a run of three seeds' length.

    Task j has ``50 - i - j / 10`` mIoU after task i, and two points more by
    the oracle.
    """
    return invent_results


def invent_results(tasks: tuple[str, ...] | int = ('day', 'night'),
                   rows: int | None = None,
                   gate: bool = True) -> StreamResults:
    """See :func:`make_results`; a number of tasks gives them long names."""
    tasks = LONG_NAMES[:tasks] if isinstance(tasks, int) else tasks
    rows = len(tasks) if rows is None else rows
    method = 'MILE <one>' if gate else 'FineTune'
    results = StreamResults.new('city & land', method, 3, tasks)
    for i in range(rows):
        for j in range(len(tasks)):
            results.set_miou('routed', i, j, 50 - i - j / 10)
            if gate and j <= i:
                results.set_miou('oracle', i, j, 52 - i - j / 10)
        results.cost.set_task(i, 12.5, 3e6 + 4e5 * i, 1.2e7 + 1e6 * i)
        results.set_class_iou('routed', tasks[i], dict(zip(CLASSES, (60, 40))))
        if gate:
            results.set_class_iou('oracle', tasks[i],
                                  dict(zip(CLASSES, (61, 40))))
    if gate and rows:
        counts = np.eye(rows) * (IMAGES - 1)
        counts[:, 0] += 1
        results.set_gate(np.trace(counts) / counts.sum(), counts)
        places = np.arange(rows)
        results.set_prototype_distances(abs(places[:, None] - places) * 10.)
        results.cost.set_experts([
            dict(task=task, lora_params=4000, head_params=500,
                 norm_params=100, prototype_values=64, bytes=20480)
            for task in tasks[:rows]
        ], tasks)  # yapf: disable
    results.cost.base_params, results.cost.macs = 2_000_000, 400_000_000
    results.set_provenance('0123abcd', dict(python='3.11', torch='2.13'),
                           'model = dict(type="<ExpertSegmentor>")', 'cpu')
    results.compute_scores()
    return results


def invent_images(tasks: tuple[str, ...],
                  rows: int,
                  gate: bool = True) -> list[RoutedImage]:
    """The last image of every task goes to the first task's expert."""
    images = []
    for index, task in enumerate(tasks):
        for number in range(IMAGES):
            wrong = number == IMAGES - 1
            routed: dict[str, Any] = {}
            if gate:
                expert = tasks[0 if wrong or index >= rows else index]
                distances = {
                    name: abs(index - i) * 10. + number
                    for i, name in enumerate(tasks[:rows])
                }
                routed = dict(expert=expert, distances=distances, ood=wrong)
                if index < rows:
                    routed['oracle_miou'] = 52 + (index if wrong else -2)
            images.append(
                RoutedImage(tasks[rows - 1], task, 'StreetDataset',
                            f'{task}/<{number}>.png', miou=50,
                            **routed))  # yapf: disable
    return images


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """``make_run(tasks, rows, gate)`` leaves a work dir as a run does."""

    def write(tasks: tuple[str, ...] = ('day', 'night'),
              rows: int | None = None,
              gate: bool = True) -> Path:
        folder = tmp_path / 'run'
        rows = len(tasks) if rows is None else rows
        invent_results(tasks, rows, gate).save(folder / 'results.json')
        if rows:
            after = tasks[rows - 1]
            write_routing_log(
                routing_log_path(folder, after),
                invent_images(tasks, rows, gate))
            kept = kept_folder(folder, after)
            for task in tasks:
                expert = task if gate else None
                write_panel(kept / 'predictions', invent_panel(task, expert))
                if gate:
                    write_panel(kept / 'routing_cost',
                                invent_panel(task, tasks[0], 3))
        return folder

    return write


@pytest.fixture
def make_panel() -> Callable[..., Panel]:
    """``make_panel(task, expert, number, **changes)``, see below."""
    return invent_panel


def invent_panel(task: str = 'day',
                 expert: str | None = 'day',
                 number: int = 0,
                 **changes: Any) -> Panel:
    """Grey; road below sky, all taken for road, and its edge unlabelled."""
    truth = np.zeros((30, 40), np.int16)
    truth[:10] = 1
    truth[0] = 255
    maps = dict(
        truth=LabelMap(truth, CLASSES, PALETTE),
        prediction=LabelMap(np.zeros_like(truth), CLASSES, PALETTE),
        oracle=LabelMap(truth, CLASSES, PALETTE))
    values = dict(
        task=task,
        number=number,
        file=f'{task}/<{number}>.png',
        expert=expert,
        ood=bool(number),
        miou=50. - number,
        oracle_miou=52.,
        image=np.full((30, 40, 3), 128, np.uint8),
        maps={
            **maps,
            **changes.pop('maps', {})
        })
    return Panel(**{**values, **changes})


@pytest.fixture
def make_task() -> Callable[..., Task]:
    """``make_task(name)``: of two classes."""
    return lambda name='day': Task(name, CLASSES, PALETTE, {}, {})


@pytest.fixture
def make_sample(tmp_path: Path) -> Callable[..., SegDataSample]:
    """A sample whose image brightens from column to column."""
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


@pytest.fixture
def texts_that_collide() -> Callable[[Figure], list[str]]:
    """Texts of a figure that overlap or leave the page."""

    def find(figure: Figure) -> list[str]:
        figure.draw_without_rendering()
        # labels of ticks beyond the limits are there, but not drawn
        hidden = {
            label
            for axes in figure.axes
            for axis in (axes.xaxis, axes.yaxis)
            for tick in axis.get_major_ticks()
            for label in (tick.label1, tick.label2)
            if not min(axis.get_view_interval()) <= tick.get_loc() <= max(
                axis.get_view_interval())
        }
        boxes = [
            (t.get_text(), t.get_window_extent()) for t in figure.findobj(Text)
            if t.get_visible() and t.get_text().strip() and t not in hidden
        ]
        page = figure.bbox
        wrong = [
            f'{name!r} leaves the page' for name, box in boxes
            if box.x0 < page.x0 or box.y0 < page.y0 or box.x1 > page.x1
            or box.y1 > page.y1
        ]
        for index, (name, box) in enumerate(boxes):
            wrong += [
                f'{name!r} over {other!r}' for other, place in boxes[:index]
                if min(
                    min(box.x1, place.x1) - max(box.x0, place.x0),
                    min(box.y1, place.y1) - max(box.y0, place.y0)) > 2
            ]
        return wrong

    return find
