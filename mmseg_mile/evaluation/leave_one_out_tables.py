# SPDX-License-Identifier: Apache-2.0
"""Leave-one-out scores as tables in Markdown and CSV."""
from __future__ import annotations

import csv
import io
import math
from typing import List, Sequence, Tuple

from prettytable import PrettyTable, TableStyle

from .continual_scores import Spread, spread
from .leave_one_out import Leak, LeaveOneOut, scopes_of
from .left_out_methods import (COMPARED, NEAREST, OOD_POLICIES, ORACLE,
                               methods_of, tau_of, title_of)
from .left_out_score import LeftOutScore

MARKS = dict(base='†', experts='‡')
HEADINGS = dict(
    none='no expert removed',
    own="the target's own expert removed",
    family="the experts of the target's family removed")
_Row = Tuple[str, str, str]


def markdown(results: LeaveOneOut) -> str:
    """All tables, and what to know of them."""
    seeds = [run.seed for run in results.runs]
    parts = [
        '# Leave one out', '',
        f'{results.method} on {results.stream}, seeds {seeds}: mIoU in per '
        "cent over the target's own classes, by name. Mean ± sample standard "
        'deviation over the seeds.', '',
        'Gate: ' + ', '.join(f'{k}={v}'
                             for k, v in results.gate.items()) + '.', ''
    ]
    for scope in scopes_of(results):
        known = {ORACLE, *methods_of(scope)} & set(results.methods)
        rows = [(title_of(m), scope, m) for m in COMPARED if m in known]
        parts += [
            _section(HEADINGS[scope].capitalize()),
            _mious(results, rows), ''
        ]
    parts += [
        _section('What becomes of out-of-distribution images'),
        _policies(results), '',
        'Images that the gate flags as out-of-distribution, %:', '',
        _flagged(results), ''
    ]
    swept = [m for m in results.methods if m not in (*COMPARED, *OOD_POLICIES)]
    if swept:
        rows = [(f'{tau_of(m):g}', 'own', m) for m in swept]
        parts += [
            _section("Temperature of SemLA's weights, own expert removed"),
            _mious(results, rows, 'tau'), ''
        ]
    return '\n'.join([*parts, *_footnotes(results)])


def csv_lines(results: LeaveOneOut) -> str:
    """A line per seed, target, scope and method, full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow([
        'stream', 'trained_as', 'seed', 'target', 'scope', 'removed', 'method',
        'miou', 'images', 'answered', 'flagged', 'leaks'
    ])
    for run in results.runs:
        for scope in scopes_of(results):
            for target in results.tasks:
                leaks = ' '.join(
                    leak.kind for leak in run.leaks
                    if leak.removed == results.removed(target, scope))
                for method in results.methods:
                    score = results.score(run, target, scope, method)
                    if score is not None and (method != ORACLE
                                              or scope == 'none'):
                        writer.writerow([
                            results.stream, results.method, run.seed, target,
                            scope, '+'.join(score.removed), method,
                            '' if math.isnan(score.miou) else score.miou,
                            score.images, score.answered, score.flagged, leaks
                        ])
    return text.getvalue()


def _section(title: str) -> str:
    return f'## {title}\n'


def _mious(results: LeaveOneOut,
           rows: Sequence[_Row],
           heading: str = 'method') -> str:
    """mIoU by target, mean and harmonic mean."""
    table = [[heading, *results.tasks, 'mean', 'h-mean']]
    for label, scope, method in rows:
        table.append([
            label, *_cells(results, scope, method),
            _shown(results.mean(scope, method)),
            _shown(results.harmonic(scope, method))
        ])
    return _markdown_table(table)


def _policies(results: LeaveOneOut) -> str:
    """Policies for flagged images, over what is removed."""
    table = [['removed', 'policy', *results.tasks, 'mean', 'answered %']]
    for scope in scopes_of(results):
        for method in (NEAREST, *OOD_POLICIES):
            answered = 100 * results.values(scope, method, _answered)
            table.append([
                scope,
                title_of(method), *_cells(results, scope, method),
                _shown(results.mean(scope, method)),
                _shown(spread(answered.mean(1)))
            ])
    return _markdown_table(table, words=2)


def _flagged(results: LeaveOneOut) -> str:
    table = [['removed', *results.tasks, 'mean']]
    for scope in scopes_of(results):
        shares = 100 * results.values(scope, NEAREST, _flag_share)
        table.append([
            scope, *(_shown(spread(c)) for c in shares.T),
            _shown(spread(shares.mean(1)))
        ])
    return _markdown_table(table)


def _cells(results: LeaveOneOut, scope: str, method: str) -> List[str]:
    """mIoU of each target, marked where it is not left out entirely."""
    found = []
    for target, column in zip(results.tasks, results.values(scope, method).T):
        value = spread(column)
        marked = method != ORACLE and not math.isnan(value.mean)
        found.append(_shown(value) + _marks(results, target, scope) * marked)
    return found


def _answered(score: LeftOutScore) -> float:
    return score.answered / score.images


def _flag_share(score: LeftOutScore) -> float:
    return score.flagged / score.images


def _marks(results: LeaveOneOut, target: str, scope: str) -> str:
    kinds = {
        leak.kind
        for leak in results.leaks_of(results.removed(target, scope))
    }
    return ''.join(mark for kind, mark in MARKS.items() if kind in kinds)


def _footnotes(results: LeaveOneOut) -> List[str]:
    """What the marks mean, and which cells there are not."""
    lines: List[str] = []
    leaks = dict.fromkeys(leak for run in results.runs for leak in run.leaks)
    for kind, mark in MARKS.items():
        lines += [f'- {mark} {_told(leak)}' for leak in leaks
                  if leak.kind == kind]  # yapf: disable
    bare = [
        target for target in results.tasks
        if set(results.families[target]) == set(results.tasks)
    ]
    if bare:
        lines.append(f'- No expert is left without the family of {bare}.')
    return [*lines, ''] if lines else []


def _told(leak: Leak) -> str:
    removed, through = ' + '.join(leak.removed), ', '.join(leak.through)
    if leak.kind == 'base':
        return (f'without {removed}: not left out entirely, the base was '
                f'trained on {through}.')
    started = 'started' if leak.certain else 'may have started'
    return (f'without {removed}: not left out entirely, {through} {started} '
            'from an expert that was removed.')


def _shown(value: Spread) -> str:
    if math.isnan(value.mean):
        return '-'
    text = f'{value.mean:.1f}'
    return text if value.num_seeds < 2 else f'{text} ± {value.deviation:.1f}'


def _markdown_table(rows: Sequence[Sequence[str]], words: int = 1) -> str:
    # prettytable wants different headings; a task may be called 'mean'
    names = [str(index) for index in range(len(rows[0]))]
    table = PrettyTable(names, align='r')
    table.set_style(TableStyle.MARKDOWN)
    for name in names[:words]:
        table.align[name] = 'l'
    for row in rows:
        table.add_row([text.replace('|', '\\|') for text in row])
    lines = table.get_string().splitlines()
    # the numbers give way to the first row
    return '\n'.join([lines[2], lines[1], *lines[3:]])
