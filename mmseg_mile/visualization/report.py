# SPDX-License-Identifier: Apache-2.0
"""The report of one run: everything it measured on one HTML page.

It needs no network and holds no date and no path of the machine: the same
files give the same bytes.
"""
from __future__ import annotations

import base64
import json
import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache, partial
from logging import Logger
from pathlib import Path
from typing import (Any, Callable, Dict, List, NamedTuple, Optional, Sequence,
                    Tuple)

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.evaluation.routing_log import (RoutedImage, read_routing_log,
                                               routing_log_path)
from mmseg_mile.evaluation.tables import (SCORE_MEANINGS, score_decimals,
                                          score_title, summary_values)
from mmseg_mile.files import PathLike, write_text
from . import plots
from .gallery import Panel, plot_gallery, read_panels

MISSING = '\u2013'
# More names would make a sentence nobody reads.
MAX_NAMED = 12
CSS_PIXELS_PER_INCH = 96

# -- files of a run -------------------------------------------------------


@dataclass(frozen=True)
class RunRecord:
    """One run, finished or not.

    Args:
        results (StreamResults): ``results.json``.
        images (Sequence[RoutedImage]): Routing log of the last finished
            row; empty where there is none. Defaults to ().
        predictions (Sequence[Panel]): The first images of every task in
            that row. Defaults to ().
        costly (Sequence[Panel]): The images whose routing cost most, the
            costliest first. Defaults to ().
    """
    results: StreamResults
    images: Sequence[RoutedImage] = ()
    predictions: Sequence[Panel] = ()
    costly: Sequence[Panel] = ()

    @property
    def learned(self) -> List[str]:
        """list[str]: Tasks with a finished row, in the stream's order."""
        return self.results.tasks[:self.results.num_finished_rows]


def kept_folder(work_dir: PathLike, after: str) -> Path:
    """Folder of the panels of one evaluation row."""
    return Path(work_dir) / 'pictures' / 'kept' / after


def read_run(work_dir: PathLike, logger: Optional[Logger] = None) -> RunRecord:
    """Read the files of a run.

    Args:
        work_dir (PathLike): Holds ``results.json`` and, where they were
            written, ``routing_log`` and ``pictures``.
        logger (Logger, optional): Hears of broken pictures, which are left
            out. Defaults to None: one is an error.

    Raises:
        ValueError: If there are no results, or a file is broken or of
            another run; names the file.
    """
    path = Path(work_dir) / 'results.json'
    if not path.is_file():
        raise ValueError(f'{work_dir} holds no results.json: name the work '
                         'dir of a run that has learned a task')
    results = StreamResults.load(path)
    rows = results.num_finished_rows
    if not rows:
        return RunRecord(results)
    after = results.tasks[rows - 1]
    folder = kept_folder(work_dir, after)
    predictions, costly = (
        read_panels(folder / name, results.tasks, logger)
        for name in ('predictions', 'routing_cost'))
    costly.sort(key=lambda panel: -panel.routing_cost)
    return RunRecord(results, _read_log(work_dir, results, after), predictions,
                     costly)


def _read_log(work_dir: PathLike, results: StreamResults,
              after: str) -> List[RoutedImage]:
    path = routing_log_path(work_dir, after)
    images = read_routing_log(path) if path.is_file() else []
    for line, image in enumerate(images, 1):
        if image.after != after or image.task not in results.tasks:
            raise ValueError(
                f'{path}, line {line}: task {image.task!r} after '
                f'{image.after!r} does not belong to the stream '
                f'{results.tasks} after {after!r}. The log is of another '
                'run: evaluate this one again, or remove the file')
    return images


def plots_of(run: RunRecord) -> Dict[str, Optional[Callable[[], Figure]]]:
    """Plots of a run by name, None where nothing was measured."""
    results, images = run.results, run.images

    def known(measured: Any, plot: Callable[..., Figure], *args:
              Any) -> Optional[Callable[[], Figure]]:
        return partial(plot, *args) if measured else None

    return dict(
        score_matrix=partial(plots.plot_score_matrix, results),
        stream_curves=known(run.learned, plots.plot_stream_curves, results),
        class_iou=known(
            any(results.class_iou['routed'].values()), plots.plot_class_iou,
            results),
        gate_confusion=known(results.has_gate, plots.plot_gate_confusion,
                             results),
        embedding_map=known(
            plots.has_embedding_map(results, images), plots.plot_embedding_map,
            results, images),
        predictions=known(run.predictions, plot_gallery, run.predictions,
                          'First images of each task'),
        routing_cost=known(run.costly, plot_gallery, run.costly,
                           'Where routing cost most', True))


# -- the page -------------------------------------------------------------


class PageFigure(NamedTuple):
    """A figure inside a page: its content, and its width in pixels."""
    source: str
    width: int

    @classmethod
    def of(cls, figure: Figure) -> 'PageFigure':
        """Draw a figure of matplotlib; photographs are smaller as JPEG."""
        kind = 'jpeg' if figure.axes[0].images else 'png'
        content = base64.b64encode(plots.figure_bytes(figure, kind))
        return cls(f'data:image/{kind};base64,{content.decode("ascii")}',
                   round(figure.get_figwidth() * CSS_PIXELS_PER_INCH))


def number(value: Optional[float], digits: int = 1) -> str:
    """A number with thousands marked; a dash where it is not known."""
    if value is None or math.isnan(value):
        return MISSING
    # adding zero turns -0.0 into 0.0
    return f'{round(value, digits) + 0.0:,.{digits}f}'


def render(template: str, **values: Any) -> str:
    """A page from a file of ``templates``; plain text is escaped."""
    return _environment().get_template(template).render(values).strip() + '\n'


@lru_cache(maxsize=None)
def _environment() -> Environment:
    # StrictUndefined: a forgotten value is an error, not a gap in the page.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / 'templates'),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True)
    environment.filters.update(
        number=number,
        total=np.nansum,
        title=score_title,
        decimals=score_decimals,
        json=partial(json.dumps, indent=2, ensure_ascii=False))
    return environment


def write_report(work_dir: PathLike, out: Optional[PathLike] = None) -> Path:
    """Write the report of a run, finished or not.

    Args:
        work_dir (PathLike): Of the run.
        out (PathLike, optional): The HTML file. Defaults to None, which is
            ``report.html`` in the work dir.

    Returns:
        Path: The file.

    Raises:
        ValueError: If there are no results, or a file of the run is broken
            or of another run; names the file.
    """
    path = Path(work_dir) / 'report.html' if out is None else Path(out)
    run = read_run(work_dir)
    figures = {
        name: plot and PageFigure.of(plot())
        for name, plot in plots_of(run).items()
    }
    write_text(path, render_report(run, figures))
    return path


def render_report(run: RunRecord, figures: Dict[str,
                                                Optional[PageFigure]]) -> str:
    """The page of a run as HTML.

    Args:
        run (RunRecord): What was measured.
        figures (dict[str, PageFigure]): By the names of :func:`plots_of`.
    """
    results, end = run.results, max(len(run.learned), 1)
    names, miou = results.tasks, results.miou
    if len(names) > MAX_NAMED:
        names = [*names[:MAX_NAMED - 1], '\u2026', names[-1]]
    costs = [image.routing_cost for image in run.images]
    lost = [image for image in run.images if image.routing_cost > 0]
    lost.sort(key=lambda image: (-image.routing_cost, image.file))
    return render(
        'report.html',
        run=run,
        results=results,
        figures=figures,
        names=names,
        kinds=[kind for kind in miou if not np.isnan(miou[kind]).all()],
        oracle=miou['oracle'][end - 1, :end].mean(),
        values=summary_values(results),
        meanings=SCORE_MEANINGS,
        routing=_routing_table(run),
        cost=_cost_table(results),
        compared=sum(not math.isnan(cost) for cost in costs),
        lost=lost)


Table = Tuple[Sequence[str], Sequence[Sequence[str]]]


def _routing_table(run: RunRecord) -> Optional[Table]:
    """Columns, and a row per task of what the routing log holds."""
    if not any(image.expert is not None for image in run.images):
        return None
    header = ('task', 'images', '% right', 'most frequent wrong expert',
              '% out-of-distribution', 'median distance: own expert',
              'median distance: nearest other', 'points lost')
    rows = []
    for task in run.results.tasks:
        images = [image for image in run.images if image.task == task]
        if not images:
            continue
        learned = task in run.learned
        wrong = Counter(i.expert for i in images if i.expert != task)
        # of equally frequent ones the earlier task
        worst = max(run.learned, key=lambda name: wrong[name])
        right = [100. * (i.expert == task) for i in images if learned]
        flagged = [100. * i.ood for i in images if i.ood is not None]
        own = [i.distances.get(task, math.nan) for i in images]
        others = [[d for e, d in i.distances.items() if e != task]
                  for i in images]
        rows.append([
            task if learned else f'{task} (not learned)',
            number(len(images), 0),
            _of_known(np.mean, right, 1),
            f'{worst} ({wrong[worst]:,})' if learned and wrong else MISSING,
            _of_known(np.mean, flagged, 1),
            _of_known(np.median, own),
            _of_known(np.median, [min(d, default=math.nan) for d in others]),
            _of_known(np.mean, [i.routing_cost for i in images])
        ])
    return _known_columns(header, rows)


def _of_known(average: Callable[[Any], Any],
              values: Sequence[float],
              digits: int = 2) -> str:
    """Mean or median of the values that are not NaN."""
    known = [value for value in values if not math.isnan(value)]
    return number(average(known) if known else math.nan, digits)


def _known_columns(header: Sequence[str], rows: List[List[str]]) -> Table:
    """The columns of a table in which something is known."""
    shown = [
        column for column in range(len(header))
        if any(row[column] != MISSING for row in rows)
    ]
    return [header[i] for i in shown], [[row[i] for i in shown]
                                        for row in rows]


def _cost_table(results: StreamResults) -> Optional[Table]:
    """What has to be kept after each task, and what each expert adds."""
    cost = results.cost
    experts = {entry['task']: entry for entry in cost.experts}
    kinds = dict.fromkeys(kind for entry in cost.experts for kind in entry)
    parts = [kind for kind in kinds if kind not in ('task', 'bytes')]
    rows = []
    for index in np.flatnonzero(cost.is_learned):
        entry = experts.get(results.tasks[index], {})
        added = sum(entry.get(p, 0) for p in parts if p.endswith('_params'))
        share = 100 * added / (cost.base_params or math.nan)
        rows.append([
            results.tasks[index],
            number(cost.train_seconds[index]),
            number(cost.kept_params[index] / 1e6, 2),
            number(cost.kept_bytes[index] / 2**20),
            *(number(entry.get(part), 0) for part in parts),
            number(share if entry else None, 2),
            number(entry.get('bytes', math.nan) / 1024, 0)
        ])
    header = ('task', 'training, s', 'kept in all, million',
              'kept in all, MiB',
              *(p.rpartition('_')[0].replace('lora', 'LoRA')
                for p in parts), '% of the base', 'expert, KiB')
    return _known_columns(header, rows) if rows else None
