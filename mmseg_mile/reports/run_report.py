# SPDX-License-Identifier: Apache-2.0
"""The report of one run: everything it measured on one HTML page."""
from __future__ import annotations

from pathlib import Path
from typing import Callable, NamedTuple, Optional

from markupsafe import Markup

from mmseg_mile.files import PathLike
from . import routing_sections as routing
from . import score_sections as scored
from . import summary_section as summed
from .gallery_section import prediction_gallery
from .page import Page
from .run_record import RunRecord, read_run

REPORT = 'report.html'


class Part(NamedTuple):
    """A section of every report.

    Args:
        title (str): Its heading.
        intro (str): How to read it.
        build (Callable): Makes it of a run; None where the data is absent.
        absent (str): Says then what is missing, and why it may be.
    """
    title: str
    intro: str
    build: Callable[[RunRecord], Optional[Markup]]
    absent: str = ''


def _predictions(run: RunRecord) -> Optional[Markup]:
    return prediction_gallery(run.predictions) if run.predictions else None


NOT_EVALUATED = 'No task is evaluated yet.'
PARTS = (
    Part('Summary', '', summed.summary),
    Part(
        'Score matrix', 'mIoU on every task (columns) after learning each '
        'task (rows). Framed: the task just learned. To the right of it: '
        'tasks that the model has not seen yet.', scored.score_matrix,
        NOT_EVALUATED),
    Part(
        'Over the stream', 'The score of each task from when it is learned. '
        'A falling line is forgetting; dashed is the expert of the true task, '
        'where that differs.', scored.curves, NOT_EVALUATED),
    Part('All scores', 'What each means, and which way is better.',
         summed.scores),
    Part(
        'IoU per class',
        'After the last learned task, as routed, and what the '
        'expert of the true task would add.', scored.class_iou, NOT_EVALUATED),
    Part(
        'Predictions',
        'The first images of each task after the last learned task, '
        'with the chosen expert and the mIoU of the image.', _predictions,
        'The run kept no pictures of its last evaluation: StreamPicturesHook '
        'writes them while it evaluates.'),
    Part(
        'Gate', 'Which expert the images of each task went to, after the '
        'last task.', routing.gate_confusion,
        'No routing was measured: the method has no experts to choose from, '
        'or no task is evaluated yet.'),
    Part(
        'Embedding map', 'Each image where the gate sees it: near the '
        'prototypes that it is close to. Drawn from distances alone.',
        routing.embedding_map,
        'There is no map: it needs the distances of images to the prototypes '
        'of two or more tasks, in the routing log.'),
    Part(
        'Routing log', 'Of all images of the last evaluation, by task: right '
        'is the expert of the own task, points lost is the mean gain that it '
        'would have brought.', routing.routing_summary,
        'There is no routing log of the last evaluation, or the method has '
        'no experts to choose from.'),
    Part('Where routing cost most', 'Images that lost most mIoU against the '
         'expert of their own task.', routing.costly_images,
         'Not known: it needs the routing log of a method with experts.'),
    Part(
        'Cost', 'What has to be kept after each task, and what each expert '
        'adds to the base.', scored.cost, 'No task is learned yet.'),
    Part('Provenance', 'What made these numbers.', summed.provenance,
         'The run has not noted what made it.'),
)


def run_page(run: RunRecord) -> Page:
    """The report of a run, finished or not.

    It holds no date and no path of the machine, so the same files give the
    same bytes.

    Raises:
        ValueError: If a kept picture is broken; names the file.
    """
    results = run.results
    page = Page(
        f'{results.method} on {results.stream}', f'seed {results.seed}, '
        f'{len(run.learned)} of {len(results.tasks)} tasks')
    for part in PARTS:
        html = part.build(run)
        if html is None:
            absent = Markup('<p class="absent">{}</p>').format(part.absent)
            page.section(part.title, '', absent)
        else:
            page.section(part.title, part.intro, html)
    return page


def write_report(work_dir: PathLike, out: Optional[PathLike] = None) -> Path:
    """Write the report of a run.

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
    page = run_page(read_run(work_dir))
    return page.save(Path(work_dir) / REPORT if out is None else out)
