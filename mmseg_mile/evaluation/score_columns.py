# SPDX-License-Identifier: Apache-2.0
"""The figures of a leaderboard: what they are called and how they are shown.

One place for the tables in Markdown, CSV and HTML, so that they agree.
"""
from __future__ import annotations

import math
from typing import Dict, NamedTuple, Optional

import numpy as np
from numpy.typing import ArrayLike

from .continual_scores import Spread, average_miou, delta_m, growth_per_task
from .results import StreamResults


class Column(NamedTuple):
    """One figure of a run.

    Args:
        key (str): Its name in the CSV files.
        heading (str): Above its column.
        meaning (str): What it is, its unit, and which way is better.
        decimals (int): That are shown.
        scale (float): Factor from the figure to what is shown.
    """
    key: str
    heading: str
    meaning: str
    decimals: int = 1
    scale: float = 1.0


SCORES = (
    Column('average_miou', 'average', '%, mean mIoU of all tasks at the end'),
    Column('plasticity', 'just learned',
           '%, mean mIoU of all tasks, each at its turn'),
    Column('forgetting', 'forgetting',
           'points that old tasks lost since their best; lower is better'),
    Column(
        'delta_m', 'Delta_m %',
        'mean relative change of mIoU against one model per task; higher is '
        'better'),
    Column('gate_accuracy', 'gate %',
           'images routed to the expert of their task'),
    Column('oracle_gap', 'oracle gap',
           'points that wrong routing costs; lower '
           'is better'),
)
MORE_SCORES = (
    Column('harmonic_mean_miou', 'harmonic mean',
           '%, at the end; one weak task weighs more than in the average'),
    Column('backward_transfer', 'backward transfer',
           'points that old tasks gained since their turn'),
    Column('forward_transfer', 'forward transfer',
           '%, zero-shot mIoU just before a task is learned'),
    Column('stability', 'stability',
           'share of its score that an old task keeps; 1 = nothing lost', 3),
    Column('oracle_miou', 'oracle',
           '%, average mIoU when routed by the true task'),
    Column('mismatch_drop', 'mismatch drop',
           'points lost with a wrong expert forced'),
)
COSTS = (
    Column(
        'kept_params', 'kept (M)',
        'millions of values that have to be kept at the end: weights, '
        'statistics, prototypes', 2, 1e-6),
    Column('params_per_task', 'M / task',
           'millions that each task after the first one adds', 3, 1e-6),
    Column('kept_bytes', 'kept (MB)', 'megabytes on disk at the end', 1, 1e-6),
    Column('bytes_per_task', 'MB / task',
           'megabytes that each task after the first one adds', 2, 1e-6),
    Column('seconds_per_task', 's / task',
           'mean training time of a task, in seconds', 0),
    Column('macs', 'GMACs', 'billions of multiply-adds to predict one image',
           2, 1e-9),
    Column(
        'net_score', 'NetScore',
        '20 log10(a^2 / sqrt(p m)): average mIoU against kept millions and '
        'GMACs; higher is better'),
)
COLUMNS = (*SCORES, *MORE_SCORES, *COSTS)


def figures_of(results: StreamResults,
               reference: Optional[ArrayLike] = None) -> Dict[str, float]:
    """Every figure of a finished run, by the key of its column.

    Args:
        results (StreamResults): Of the run.
        reference (ArrayLike, optional): (T,) mIoU of one model per task;
            ``delta_m`` is NaN without it. Defaults to None.
    """
    cost = results.cost
    change = math.nan
    if reference is not None:
        change = delta_m(results.miou['routed'][-1], reference)
    found = dict(
        results.scores,
        delta_m=change,
        gate_accuracy=100 * results.gate_accuracy,
        oracle_miou=average_miou(results.miou['oracle']),
        kept_params=float(cost.kept_params[-1]),
        params_per_task=growth_per_task(cost.kept_params),
        kept_bytes=float(cost.kept_bytes[-1]),
        bytes_per_task=growth_per_task(cost.kept_bytes),
        seconds_per_task=float(np.mean(cost.train_seconds)),
        macs=math.nan if cost.macs is None else float(cost.macs))
    return {column.key: found[column.key] for column in COLUMNS}


def cell(value: Spread, column: Column) -> str:
    """Mean and deviation, '52.0 ± 2.8'; '52.0 ± -' for one seed."""
    if math.isnan(value.mean):
        return '-'
    return (f'{number(value.mean, column)} ± '
            f'{number(value.deviation, column)}')


def number(value: float, column: Column) -> str:
    """One figure as it is shown; '-' where it is not known."""
    if math.isnan(value):
        return '-'
    # Adding zero turns -0.0 into 0.0.
    shown = round(column.scale * value, column.decimals) + 0.0
    return f'{shown:,.{column.decimals}f}'
