# SPDX-License-Identifier: Apache-2.0
"""Where the gate sent the images, and what that cost."""
from __future__ import annotations

import math
from collections import Counter
from pathlib import PurePosixPath
from typing import Collection, List, Optional, Sequence, Union

import numpy as np
from markupsafe import Markup

from mmseg_mile.evaluation import RoutedImage
from mmseg_mile.visualization.embedding_map import (figure_embedding_map,
                                                    has_embedding_map)
from mmseg_mile.visualization.gate_confusion import figure_gate_confusion
from .gallery_section import cost_gallery, expert_words
from .page import MISSING, figure, number, paragraph, png_bytes, table
from .run_record import RunRecord

# Rows in the list of the images that routing cost most.
MAX_COSTLY = 10
# A map of more points than this is smaller as pixels.
MAX_DRAWN_POINTS = 2000
SUMMARY = ('task', 'images', '% right', 'most frequent wrong expert',
           '% out-of-distribution', 'median distance: own expert',
           'median distance: nearest other', 'points lost')


def gate_confusion(run: RunRecord) -> Optional[Markup]:
    """True task against chosen expert."""
    results = run.results
    if not results.has_gate:
        return None
    return figure(
        figure_gate_confusion(results),
        alt='Images per true task and chosen expert; '
        f'{number(100 * results.gate_accuracy, 2)} % right')


def embedding_map(run: RunRecord) -> Optional[Markup]:
    """Images and prototypes as the gate sees them."""
    if not has_embedding_map(run.results, run.images):
        return None
    picture = figure_embedding_map(run.results, run.images)
    ood = sum(bool(image.ood) for image in run.images)
    return figure(
        png_bytes(picture) if len(run.images) > MAX_DRAWN_POINTS else picture,
        alt=f'Map of {len(run.images)} images around the prototypes of '
        f'{len(run.learned)} tasks; {ood} images are '
        'out-of-distribution')


def routing_summary(run: RunRecord) -> Optional[Markup]:
    """One line per task of what the routing log holds."""
    if not _is_routed(run):
        return None
    return _known_table(SUMMARY, routing_rows(run), texts=(0, 3))


def routing_rows(run: RunRecord) -> List[List[str]]:
    """The cells of :func:`routing_summary`.

    Shares are of the task's images; the two distances are medians over them
    in the gate's unit; the points lost are the mean of what each image would
    have gained with the expert of its own task.
    """
    rows = []
    for task in run.results.tasks:
        images = [image for image in run.images if image.task == task]
        if not images:
            continue
        learned = task in run.learned
        flags = [i.ood for i in images if i.ood is not None]
        right = [i.expert == task for i in images] if learned else []
        rows.append([
            task if learned else f'{task} (not learned)', f'{len(images):,}',
            _percent(right),
            _wrong_expert(images, run.learned) if learned else MISSING,
            _percent(flags),
            _median([i.distances.get(task, math.nan) for i in images]),
            _median([_nearest_other(i) for i in images]),
            number(_mean([i.routing_cost for i in images]), 2)
        ])
    return rows


def costly_images(run: RunRecord) -> Optional[Markup]:
    """The images that lost most mIoU, as a list and in pictures."""
    known = [i for i in run.images if not math.isnan(i.routing_cost)]
    if not known or not _is_routed(run):
        return None
    lost = sorted((i for i in known if i.routing_cost > 0),
                  key=lambda i: (-i.routing_cost, i.file))
    if not lost:
        return paragraph(
            f'None of {len(known):,} images would have scored higher with '
            'the expert of its own task.')
    parts = [
        paragraph(f'{len(lost):,} of {len(known):,} images would have scored '
                  'higher with the expert of their own task.'),
        _costly_table(lost[:MAX_COSTLY])
    ]
    if run.costly is None:
        parts.append(
            Markup('<p class="absent">{}</p>').format(
                'The run kept no pictures of these images.'))
    else:
        parts.append(cost_gallery(run.costly))
    return Markup('\n').join(parts)


def _costly_table(images: Sequence[RoutedImage]) -> Markup:
    header = ('image', 'task', 'expert', 'mIoU as routed',
              'with its own expert', 'points lost', 'distance: chosen expert',
              'distance: own expert')
    rows: List[List[Union[str, Markup]]] = [[
        PurePosixPath(i.file).name, i.task,
        expert_words(i.expert, i.task),
        number(_value(i.miou)),
        number(_value(i.oracle_miou)),
        number(i.routing_cost),
        number(i.distances.get(i.expert or '', math.nan), 2),
        number(i.distances.get(i.task, math.nan), 2)
    ] for i in images]
    return _known_table(header, rows, texts=(0, 1, 2))


def _known_table(header: Sequence[str],
                 rows: Sequence[Sequence[Union[str, Markup]]],
                 texts: Collection[int]) -> Markup:
    """A table of the columns in which something is known."""
    shown = [
        column for column in range(len(header))
        if any(row[column] != MISSING for row in rows)
    ]
    return table([header[column] for column in shown],
                 [[row[column] for column in shown] for row in rows],
                 numeric=[
                     place for place, column in enumerate(shown)
                     if column not in texts
                 ])


def _is_routed(run: RunRecord) -> bool:
    return any(image.expert is not None for image in run.images)


def _nearest_other(image: RoutedImage) -> float:
    others = [d for e, d in image.distances.items() if e != image.task]
    return min(others, default=math.nan)


def _wrong_expert(images: Sequence[RoutedImage],
                  learned: Sequence[str]) -> str:
    wrong = Counter(i.expert for i in images if i.expert != i.task)
    # of equally frequent ones the earlier task
    order = sorted(((count, -learned.index(name), name)
                    for name, count in wrong.items() if name in learned),
                   reverse=True)
    return f'{order[0][2]} ({order[0][0]:,})' if order else MISSING


def _percent(flags: Sequence[bool]) -> str:
    return number(100 * sum(flags) / len(flags) if flags else math.nan)


def _median(values: Sequence[float]) -> str:
    known = [v for v in values if not math.isnan(v)]
    return number(float(np.median(known)) if known else math.nan, 2)


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan


def _value(score: Optional[float]) -> float:
    return math.nan if score is None else score
