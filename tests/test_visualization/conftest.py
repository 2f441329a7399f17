# SPDX-License-Identifier: Apache-2.0
"""An invented run, and the look at a figure before it becomes pixels."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, List, Set

import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from mmengine.structures import PixelData

from mmseg.structures import SegDataSample
from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.visualization.panel import Panel

NAMES = [
    'day', 'dusk', 'idd_lite', 'freiburg-thermal', 'acdc-night', 'cityscapes',
    'bdd100k', 'muses-clear-day', 'a very long name of a task', 'WWWWWWWWWWWW',
    'rain', 'snow'
]
CLASSES = [
    'road', 'sidewalk', 'a class with a long name', 'fence', 'pole', 'sky',
    'traffic light', 'person', 'rider', 'car', 'truck', 'train'
]
NAMES += [f'domain {i}' for i in range(12)]


@pytest.fixture
def make_results() -> Callable[..., StreamResults]:
    """Fixture: results of a stream of ``size`` tasks."""

    def make(size: int, oracle: bool = True) -> StreamResults:
        rng = np.random.default_rng(0)
        results = StreamResults.new('city', 'MILE', 0, NAMES[:size])
        for i in range(size):
            for j in range(size):
                results.set_miou('routed', i, j, rng.uniform(20, 70))
                if oracle and j <= i:
                    results.set_miou('oracle', i, j, rng.uniform(20, 70))
            for kind in ('routed', 'oracle') if oracle else ('routed', ):
                results.set_class_iou(
                    kind, NAMES[i],
                    dict(zip(CLASSES[i % 3:], rng.uniform(0, 100, 12))))
        counts = np.eye(size) * 40
        counts[0, -1] = 3
        results.set_gate(0.875, counts)
        return results

    return make


@pytest.fixture
def make_panel() -> Callable[..., Panel]:
    """Fixture: a grey image of road below sky, all taken for road."""

    def make(**changes: Any) -> Panel:
        truth = np.zeros((30, 40), np.uint8)
        truth[:10] = 1
        truth[0] = 255
        classes, palette = ('road', 'sky', 'car'), ((90, 0, 0), (0, 90, 0),
                                                    (0, 0, 90))
        values = dict(
            image=np.full((30, 40, 3), 128, np.uint8),
            truth=truth,
            prediction=np.zeros((30, 40), np.int16),
            truth_classes=classes,
            truth_palette=palette,
            prediction_classes=classes,
            prediction_palette=palette,
            task='day',
            expert='day')
        return Panel(**{**values, **changes})

    return make


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


@pytest.fixture
def texts_that_collide() -> Callable[[Figure], List[str]]:
    """Fixture: texts of a figure that overlap or leave the page."""

    def find(figure: Figure) -> List[str]:
        figure.draw_without_rendering()
        off_page = _ticks_out_of_view(figure)
        boxes = [
            (t.get_text(), t.get_window_extent()) for t in figure.findobj(Text)
            if t.get_visible() and t.get_text().strip() and t not in off_page
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
                if _shared_pixels(box, place) > 2
            ]
        return wrong

    return find


def _ticks_out_of_view(figure: Figure) -> Set[Text]:
    """Labels of ticks beyond the limits, and of those switched off."""
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                if not low <= tick.get_loc() <= high:
                    hidden |= {tick.label1, tick.label2}
    return hidden


def _shared_pixels(one: object, two: object) -> float:
    """Smaller side of the rectangle that two boxes share."""
    wide = min(one.x1, two.x1) - max(one.x0, two.x0)
    high = min(one.y1, two.y1) - max(one.y0, two.y0)
    return min(wide, high)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> List[Figure]:
    """Fixture: collects the figures instead of writing their files."""
    figures: List[Figure] = []

    def savefig(self: Figure, *args: object, **kwargs: object) -> None:
        figures.append(self)

    monkeypatch.setattr(Figure, 'savefig', savefig)
    return figures
