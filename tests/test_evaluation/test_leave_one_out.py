# SPDX-License-Identifier: Apache-2.0
"""Tables of leave-one-out scores against figures worked out by hand."""
from __future__ import annotations

import csv
import io
from dataclasses import replace
from typing import List

import pytest
from fabricated_leave_one_out import ALONE, TARGETS, scores_of

from mmseg_mile.evaluation.leave_one_out import (ORACLE, Leak, LeaveOneOut,
                                                 csv_lines, markdown)

LEAKS = (Leak(('fog', ), 'base',
              ('fog', )), Leak(('fog', 'rain'), 'base', ('fog', )),
         Leak(('rain', ), 'experts', ('city', )))
OWN = "## The target's own expert removed"
FAMILY = "## The experts of the target's family removed"
POLICY = '## What becomes of out-of-distribution images'
FLAGGED = 'Images that the gate flags, %:'
SWEEP = "## Temperature of SemLA's weights, own expert removed"


def table(text: str, title: str) -> List[List[str]]:
    """Rows of cells below a heading."""
    assert f'{title}\n' in text
    lines = text.split(f'{title}\n')[1].strip().split('\n\n')[0].split('\n')
    found = [[c.strip() for c in line.strip('|').split('|')] for line in lines]
    return [found[0], *found[2:]]


def row(text: str, title: str, *start: str) -> List[str]:
    """The rest of the row that starts so."""
    found, = (r for r in table(text, title) if r[:len(start)] == list(start))
    return found[len(start):]


def test_table_of_a_scope_has_means_and_harmonic_means() -> None:
    text = markdown(scores_of())
    assert table(text, OWN)[0] == ['method', *TARGETS, 'mean', 'h-mean']
    assert row(text, OWN, 'oracle: own expert') == ['60.0'] * 5
    # 3 / (1/30 + 1/60 + 1/60) = 45 and 3 / (1/20 + 1/40 + 1/60) = 32.7
    assert row(text, OWN,
               'nearest expert') == ['30.0', '60.0', '60.0', '50.0', '45.0']
    assert row(text, FAMILY,
               'nearest expert') == ['20.0', '40.0', '60.0', '40.0', '32.7']
    assert [r[0] for r in table(text, '## No expert removed')[1:]] == [
        'oracle: own expert', 'nearest expert', 'SemLA: adapters and heads',
        'SemLA: adapters, nearest head', 'SemLA: outputs'
    ]


def test_family_has_a_table_only_where_a_family_is() -> None:
    assert FAMILY not in markdown(scores_of(families=ALONE))
    everyone = dict.fromkeys(TARGETS, TARGETS)
    assert ("No expert is left without the family of ['fog', 'rain'"
            in markdown(scores_of(families=everyone)))


def test_several_seeds_show_their_deviation() -> None:
    text = markdown(scores_of(seeds=(0, 1)))
    assert row(text, OWN, 'nearest expert')[0] == '31.0 ± 1.4'


def test_policies_stand_beside_the_share_that_is_flagged() -> None:
    text = markdown(scores_of())
    assert table(text, POLICY)[0] == [
        'removed', 'policy', *TARGETS, 'mean', 'answered %'
    ]
    assert row(text, POLICY, 'own', 'nearest; flagged: base') == [
        '70.0', '60.0', '50.0', '60.0', '100.0'
    ]
    assert row(text, POLICY, 'own', 'nearest; flagged: no prediction') == [
        '-', '60.0', '60.0', '-', '20.0'
    ]
    assert row(text, POLICY, 'none',
               'nearest; flagged: no prediction')[-1] == '90.0'
    assert row(text, FLAGGED, 'none') == ['10.0'] * 4
    assert row(text, FLAGGED, 'family') == ['80.0'] * 4


def test_sweep_of_tau_has_its_own_table() -> None:
    text = markdown(scores_of(sweep=True))
    # 3 / (1/10 + 1/20 + 1/20) = 15
    assert row(text, SWEEP,
               'SemLA, tau 0.1') == ['10.0', '20.0', '20.0', '16.7', '15.0']
    assert SWEEP not in markdown(scores_of())


def test_cells_that_are_not_left_out_entirely_are_marked() -> None:
    text = markdown(scores_of(leaks=LEAKS))
    assert row(text, OWN, 'nearest expert')[:3] == ['30.0†', '60.0‡', '60.0']
    assert row(text, OWN, 'oracle: own expert')[0] == '60.0'
    assert row(text, FAMILY,
               'nearest expert')[:3] == ['20.0†', '40.0†', '60.0']
    assert row(text, POLICY, 'none', 'nearest expert')[0] == '50.0'
    # no mark behind no figure
    assert row(text, POLICY, 'own',
               'nearest; flagged: no prediction')[0] == '-'
    assert ('- † without fog + rain: not left out entirely, the base was '
            'trained on fog.') in text
    assert ('- ‡ without rain: not left out entirely, city started from an '
            'expert that was removed.') in text


def test_csv_has_a_line_per_cell() -> None:
    text = csv_lines(scores_of(seeds=(0, 5), leaks=LEAKS))
    rows = list(csv.DictReader(io.StringIO(text)))
    found, = (
        r for r in rows if (r['target'], r['scope'], r['method'],
                            r['seed']) == ('fog', 'family', 'nearest', '5'))
    assert found == dict(
        stream='street',
        trained_as='MILE',
        seed='5',
        target='fog',
        scope='family',
        removed='fog+rain',
        method='nearest',
        miou='22.0',
        images='10',
        answered='10',
        flagged='8',
        leaks='base')
    assert sum(r['method'] == ORACLE for r in rows) == 2 * 3


def test_file_keeps_everything(tmp_path) -> None:
    path = tmp_path / 'leave_one_out.json'
    results = scores_of(seeds=(0, 1), leaks=LEAKS, sweep=True)
    results.save(path)
    found = LeaveOneOut.load(path)
    # NaN is not equal to itself
    assert markdown(found) == markdown(results)
    assert csv_lines(found) == csv_lines(results)
    assert replace(found, runs=()) == replace(results, runs=())


@pytest.mark.parametrize('text',
                         ['{}', '[]', '{"schema": 1}', '{"schema": 2}'])
def test_other_file_is_refused(text: str, tmp_path) -> None:
    path = tmp_path / 'other.json'
    path.write_text(text)
    with pytest.raises(
            ValueError, match='other.json holds no leave-one-out scores'):
        LeaveOneOut.load(path)
