# SPDX-License-Identifier: Apache-2.0
"""What a run was and how it ended, in words; its scores; what made it."""
from __future__ import annotations

import json
from typing import List, Optional, Union

import numpy as np
from markupsafe import Markup

from mmseg_mile.evaluation.tables import (SCORE_MEANINGS, score_decimals,
                                          score_title, summary_values)
from .page import bullets, folded, number, table
from .run_record import RunRecord

OLD_IMAGES = dict(
    none='keeps no image of earlier tasks',
    buffer='keeps a buffer of images of earlier tasks',
    all='trains on the images of all tasks')
# More names than this would make a sentence nobody reads.
MAX_NAMED = 12


def summary(run: RunRecord) -> Markup:
    """Method, stream and the figures that matter most."""
    results, learned = run.results, run.learned
    label = results.setting['task_label_at_test']
    items = [
        f'{results.method} learned {len(learned)} of '
        f'{_count(len(results.tasks), "task")} of the stream '
        f'{results.stream}, with seed {results.seed}: '
        f'{_name_all(results.tasks)}.',
        f'It {"is told" if label else "is not told"} which task a test image '
        f'belongs to, and {OLD_IMAGES[results.setting["old_images"]]}.'
    ]
    parts = [bullets([*items, *_score_words(run), *_cost_words(run)])]
    if len(learned) < len(results.tasks):
        parts.insert(
            0,
            Markup('<p class="warning">This run is not finished: {} of {} '
                   'are learned and evaluated{}. It can go on with '
                   '<code>--resume</code>.</p>').format(
                       len(learned), _count(len(results.tasks), 'task'),
                       ', and all scores are over these' if learned else ''))
    return Markup('\n').join(parts)


def scores(run: RunRecord) -> Markup:
    """Every score with its meaning."""
    values = summary_values(run.results)
    rows = []
    for name, meaning in SCORE_MEANINGS.items():
        value = number(values[name], score_decimals(name))
        rows.append([score_title(name), value, meaning])
    return table(['score', 'value', 'meaning'], rows, numeric=[1])


def provenance(run: RunRecord) -> Optional[Markup]:
    """Commit, versions, device and the resolved config."""
    found = run.results.provenance
    rows = [[name, str(found[name])] for name in ('commit', 'device')
            if found[name] is not None]
    if isinstance(found['versions'], dict):
        rows += [[name, str(v)] for name, v in found['versions'].items()]
    config = found['config']
    if not rows and config is None:
        return None
    parts = [table(['what', 'which'], rows)] if rows else []
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(
            config, indent=2, ensure_ascii=False)
        parts.append(
            folded('The config',
                   Markup('<pre>{}</pre>').format(text)))
    return Markup('\n').join(parts)


def _score_words(run: RunRecord) -> List[Union[str, Markup]]:
    results = run.results
    values = summary_values(results)
    if not run.learned:
        return ['No task is evaluated yet, so there is no score.']
    items = [
        f'After the last learned task the average mIoU is '
        f'{number(values["average_miou"])} %' + _oracle_words(run) + '.'
    ]
    lost = values['forgetting']
    if not np.isnan(lost):
        # what rounds to nothing is nothing
        shown = round(lost, 1) + 0.0
        change = 'kept their best score' if shown == 0 else (
            f'{"lost" if shown > 0 else "gained"} {number(abs(shown))} points '
            'of mIoU against their best score')
        items.append(f'Earlier tasks, on average, {change}.')
    if results.has_gate:
        counts = results.gate_confusion
        right, images = np.nansum(np.diagonal(counts)), np.nansum(counts)
        items.append(
            f'The gate sent {number(100 * results.gate_accuracy, 2)} % of '
            f'the images to the expert of their task ({right:,.0f} of '
            f'{images:,.0f}).')
    return list(items)


def _oracle_words(run: RunRecord) -> str:
    size = len(run.learned)
    oracle = run.results.miou['oracle'][size - 1, :size].mean()
    if np.isnan(oracle):
        return ''
    return f'; with the expert of the true task it would be {number(oracle)} %'


def _cost_words(run: RunRecord) -> List[str]:
    cost, size = run.results.cost, len(run.learned)
    if not size or np.isnan(cost.kept_params[size - 1]):
        return []
    return [
        f'In all, {number(cost.kept_params[size - 1] / 1e6, 2)} million '
        'values have to be kept, '
        f'{number(cost.kept_bytes[size - 1] / 2**20)} MiB on disk; training '
        f'took {number(np.nansum(cost.train_seconds), 0)} s.'
    ]


def _name_all(names: List[str]) -> str:
    arrow = ' \u2192 '
    if len(names) <= MAX_NAMED:
        return arrow.join(names)
    return arrow.join([*names[:MAX_NAMED - 1], '\u2026', names[-1]])


def _count(count: int, what: str) -> str:
    return f'{count} {what}' + 's' * (count != 1)
