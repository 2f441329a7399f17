# SPDX-License-Identifier: Apache-2.0
"""The score matrix, its curves, the IoU of classes, and what it all cost."""
from __future__ import annotations

from typing import List, Optional

import numpy as np
from markupsafe import Markup

from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.visualization.class_iou import figure_class_iou
from mmseg_mile.visualization.score_matrix import figure_score_matrix
from mmseg_mile.visualization.stream_curves import figure_stream_curves
from .page import MISSING, figure, folded, number, paragraph, table
from .run_record import RunRecord

KINDS = dict(routed='routed', oracle='oracle (true task)')


def score_matrix(run: RunRecord) -> Optional[Markup]:
    """Heat maps of all evaluations, and their numbers."""
    results = run.results
    if not run.learned:
        return None
    tables = [
        _matrix_table(run, kind) for kind in KINDS
        if not np.isnan(results.miou[kind]).all()
    ]
    return Markup('\n').join([
        figure(
            figure_score_matrix(results),
            alt=f'mIoU of {len(results.tasks)} tasks after each of '
            f'{len(run.learned)} learned tasks; the numbers stand below'),
        folded('The numbers',
               Markup('\n').join(tables))
    ])


def curves(run: RunRecord) -> Optional[Markup]:
    """How the score of each task goes on."""
    if not run.learned:
        return None
    return figure(
        figure_stream_curves(run.results),
        alt='mIoU of each task, and the mean of all learned ones, over the '
        'stream; the numbers stand with the score matrix')


def class_iou(run: RunRecord) -> Optional[Markup]:
    """A chart of all classes and tasks, and a table for each task."""
    results = run.results
    tasks = [t for t in results.tasks if results.class_iou['routed'].get(t)]
    if not tasks:
        return None
    chart = figure(
        figure_class_iou(results),
        alt=f'IoU per class of {len(tasks)} tasks; the numbers stand below')
    tables = Markup('\n').join(_class_table(results, task) for task in tasks)
    return chart + Markup('\n') + folded('The numbers', tables)


def _matrix_table(run: RunRecord, kind: str) -> Markup:
    tasks, matrix = run.results.tasks, run.results.miou[kind]
    rows = []
    for row, name in enumerate(run.learned):
        mean = matrix[row, :row + 1].mean()
        rows.append([name, *map(number, matrix[row]), number(mean)])
    header = ['after', *tasks, 'mean of learned']
    return table(
        header,
        rows,
        numeric=range(1, len(header)),
        caption=f'mIoU in %, {KINDS[kind]}')


def _class_table(results: StreamResults, task: str) -> Markup:
    routed = results.class_iou['routed'][task]
    oracle = results.class_iou['oracle'].get(task, {})
    rows = []
    for name, value in routed.items():
        own = oracle.get(name, np.nan)
        rows.append([name, number(value), number(own), number(own - value)])
    return table(['class', 'routed', 'oracle', 'lost by routing'],
                 rows,
                 numeric=[1, 2, 3],
                 caption=f'{task}: IoU in %; a class without a value is not '
                 'in its images')


def cost(run: RunRecord) -> Optional[Markup]:
    """What each task added, what is kept, and the time that it took."""
    found = run.results.cost
    if not found.is_learned.any():
        return None
    base = MISSING if found.base_params is None else f'{found.base_params:,}'
    score = run.results.scores['net_score']
    macs = number(np.nan if found.macs is None else found.macs / 1e9, 2)
    words = (f'The backbone has {base} parameters; the prediction of one '
             f'image takes {macs} billion multiply-adds; NetScore '
             f'{number(score)}.')
    return paragraph(words) + Markup('\n') + _cost_table(run.results)


def _cost_table(results: StreamResults) -> Markup:
    found = results.cost
    experts = {entry['task']: entry for entry in found.experts}
    header = [
        'task', 'training, s', 'kept in all, million', 'kept in all, MiB'
    ]
    if experts:
        header += [
            'LoRA', 'head', 'norm', 'prototypes', '% of the base',
            'expert, KiB'
        ]
    rows = []
    for index in np.flatnonzero(found.is_learned):
        name = results.tasks[index]
        rows.append([
            name,
            number(found.train_seconds[index]),
            number(found.kept_params[index] / 1e6, 2),
            number(found.kept_bytes[index] / 2**20),
            *(_expert_cells(results, name) if experts else [])
        ])
    return table(header, rows, numeric=range(1, len(header)))


def _expert_cells(results: StreamResults, task: str) -> List[str]:
    cost = results.cost
    for entry in cost.experts:
        if entry['task'] == task:
            kinds = ('lora_params', 'head_params', 'norm_params')
            added = sum(entry[kind] for kind in kinds)
            share = 100 * added / cost.base_params if cost.base_params else (
                np.nan)
            return [
                *(f'{entry[kind]:,}' for kind in (*kinds, 'prototype_values')),
                number(share, 2),
                number(entry['bytes'] / 1024, 0)
            ]
    return [MISSING] * 6
