# SPDX-License-Identifier: Apache-2.0
"""Invented runs on disk, and the parts of a page."""
from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np
import pytest

from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.evaluation.routing_log import (RoutedImage, routing_log_path,
                                               write_routing_log)
from mmseg_mile.visualization.panel import Panel
from mmseg_mile.visualization.picture_store import PictureStore

# Names are text, whatever they look like.
CLASSES = ('road', '<b>sky</b> & "more"')
PALETTE = ((128, 64, 128), (70, 130, 180))
IMAGES = 4


class PageParts(HTMLParser):
    """Tags, texts by heading, and tables of a page.

    Args:
        html (str): The page.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: List[Tuple[str, Dict[str, Optional[str]]]] = []
        self.texts: Dict[str, str] = {}
        self.section = ''
        self._path: List[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == 'section':
            self.section = dict(attrs)['id']
            self.texts[self.section] = ''

    def handle_data(self, data: str) -> None:
        if self.section:
            self.texts[self.section] += data.strip() + ' '

    def count(self, tag: str) -> int:
        """Number of elements."""
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope='session')
def read_page() -> Callable[[str], PageParts]:
    """Fixture: the parts of a page."""
    return PageParts


@pytest.fixture(scope='session')
def words_of() -> Callable[[str], str]:
    """Fixture: what a piece of a page says, on one line."""

    def words(html: str) -> str:
        parts = PageParts(f'<section id="piece">{html}')
        return ' '.join(parts.texts['piece'].split())

    return words


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Fixture: ``make_run(tasks, rows)`` leaves a work dir as a run does."""
    return lambda *args, **kwargs: write_run(tmp_path / 'run', *args, **kwargs)


def write_run(folder: Path,
              tasks: Tuple[str, ...] = ('day', 'night'),
              rows: Optional[int] = None,
              gate: bool = True) -> Path:
    """Write the files of an invented run.

    Args:
        folder (Path): The work dir.
        tasks (tuple[str]): Of the stream. Defaults to two.
        rows (int, optional): Finished ones. Defaults to all.
        gate (bool): Whether the method has experts. Defaults to True.
    """
    rows = len(tasks) if rows is None else rows
    results = invent_results(tasks, rows, gate)
    results.save(folder / 'results.json')
    if rows:
        after = tasks[rows - 1]
        images = invent_images(tasks, rows, gate)
        write_routing_log(routing_log_path(folder, after), images)
        write_pictures(folder / 'pictures', tasks, after, gate)
    return folder


def invent_results(tasks: Tuple[str, ...], rows: int,
                   gate: bool) -> StreamResults:
    """Scores fall by a point a task; an oracle is two points above."""
    size = len(tasks)
    method = 'MILE <one>' if gate else 'FineTune'
    results = StreamResults.new('city & land', method, 3, tasks)
    for i in range(rows):
        for j in range(size):
            results.set_miou('routed', i, j, 50 - i - j / 10)
            if gate and j <= i:
                results.set_miou('oracle', i, j, 52 - i - j / 10)
        results.cost.set_task(i, 12.5, 3e6 + 4e5 * i, 1.2e7 + 1e6 * i)
        results.set_class_iou('routed', tasks[i], dict(zip(CLASSES, (60, 40))))
        if gate:
            results.set_class_iou('oracle', tasks[i],
                                  dict(zip(CLASSES, (61, 43))))
    if gate and rows:
        counts = np.eye(rows) * (IMAGES - 1)
        counts[:, 0] += 1
        results.set_gate(np.trace(counts) / counts.sum(), counts)
        places = np.arange(rows)
        results.set_prototype_distances(abs(places[:, None] - places) * 10.)
        results.cost.set_experts([
            dict(
                task=task,
                lora_params=4000,
                head_params=500,
                norm_params=100,
                prototype_values=64,
                bytes=20480) for task in tasks[:rows]
        ], tasks)
    results.cost.base_params, results.cost.macs = 2_000_000, 400_000_000
    results.set_provenance('0123abcd', dict(python='3.11', torch='2.13'),
                           'model = dict(type="<ExpertSegmentor>")', 'cpu')
    results.compute_scores()
    return results


def invent_images(tasks: Tuple[str, ...], rows: int,
                  gate: bool) -> List[RoutedImage]:
    """The last image of every task goes to the first task's expert."""
    images = []
    for index, task in enumerate(tasks):
        for number in range(IMAGES):
            wrong = number == IMAGES - 1
            routed: Dict[str, Any] = {}
            if gate:
                expert = tasks[0 if wrong or index >= rows else index]
                routed = dict(
                    expert=expert,
                    mixture={expert: 1.0},
                    distances={
                        name: abs(index - i) * 10. + number
                        for i, name in enumerate(tasks[:rows])
                    },
                    ood=wrong)
                if index < rows:
                    routed['oracle_miou'] = 52 + (index if wrong else -2)
            images.append(
                RoutedImage(
                    tasks[rows - 1],
                    task,
                    'StreetDataset',
                    f'{task}/<{number}>.png',
                    miou=50,
                    **routed))
    return images


def invent_panel(task: str, expert: Optional[str], number: int) -> Panel:
    """A panel of 8 x 12 pixels."""
    truth = np.zeros((8, 12), int)
    truth[:4] = 1
    image = np.full((8, 12, 3), 20 * number, np.uint8)
    spaces = [CLASSES, PALETTE, CLASSES, PALETTE]
    return Panel(
        image,
        truth,
        truth[::-1],
        *spaces,
        task,
        expert,
        ood=bool(number),
        miou=50 - number,
        oracle=truth if expert else None,
        oracle_classes=CLASSES,
        oracle_palette=PALETTE,
        oracle_miou=52,
        file=f'{task}/<{number}>.png')


def write_pictures(folder: Path, tasks: Tuple[str, ...], after: str,
                   gate: bool) -> None:
    """Two predictions of each task and, with a gate, one costly image."""
    spaces = [(CLASSES, PALETTE)]
    kept = PictureStore(folder / 'predictions')
    kept.begin_row(after, spaces)
    for task in tasks:
        for number in range(2):
            kept.add(
                invent_panel(task, task if gate else None, number), number)
    if gate:
        costly = PictureStore(folder / 'routing_cost')
        costly.begin_row(after, spaces)
        for task in tasks:
            costly.add(invent_panel(task, tasks[0], 3), 3)
