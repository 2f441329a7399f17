# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import io
import math

from fabricated_left_out import LEAKS, fabricated

from mmseg_mile.evaluation.leave_one_out_tables import csv_lines, markdown

MIOUS = {
    ('none', 'oracle'): (60, 60, 60),
    ('own', 'nearest'): (30, 60, 60),
    ('family', 'nearest'): (20, 40, 60),
    ('own', 'fused_adapters_tau_0.1'): (10, 20, 20),
}


def table(text, title):
    """Rows of cells below a heading."""
    lines = text.split(f'{title}\n')[1].split('\n')
    first = next(i for i, line in enumerate(lines) if line.startswith('|'))
    found = []
    for line in lines[first:]:
        if not line.startswith('|'):
            break
        found.append([cell.strip() for cell in line.strip('|').split('|')])
    return [found[0], *found[2:]]


def row(rows, *start):
    return next(r for r in rows if r[:len(start)] == list(start))


def test_own_expert_removed():
    rows = table(
        markdown(fabricated(MIOUS)), "## The target's own expert removed")
    assert rows[0] == ['method', 'fog', 'rain', 'city', 'mean', 'h-mean']
    assert rows[1] == [
        'oracle: own expert', '60.0', '60.0', '60.0', '60.0', '60.0'
    ]
    assert row(rows, 'nearest expert')[1:] == [
        '30.0', '60.0', '60.0', '50.0', '45.0'
    ]
    assert len(rows) == 10


def test_nothing_removed_shows_what_was_evaluated_so():
    rows = table(markdown(fabricated(MIOUS)), '## No expert removed')
    assert [r[0] for r in rows[1:]] == [
        'oracle: own expert', 'nearest expert', 'SemLA: adapters and heads',
        'SemLA: adapters, nearest head', 'SemLA: outputs'
    ]


def test_family_removed_has_a_table_where_a_family_is():
    heading = "## The experts of the target's family removed"
    text = markdown(fabricated(MIOUS))
    assert row(table(text, heading), 'nearest expert')[1:] == [
        '20.0', '40.0', '60.0', '40.0', '32.7'
    ]
    alone = {name: (name, ) for name in ('fog', 'rain', 'city')}
    assert heading not in markdown(fabricated(MIOUS, families=alone))


def test_several_seeds_show_their_deviation():
    rows = table(
        markdown(fabricated(MIOUS, (0, 1))),
        "## The target's own expert removed")
    assert row(rows, 'nearest expert')[1] == '31.0 ± 1.4'


def test_policies_beside_what_they_are_for():
    text = markdown(fabricated({('own', 'unfamiliar_base'): (70, 60, 50)}))
    rows = table(text, '## What becomes of out-of-distribution images')
    assert rows[0] == [
        'removed', 'policy', 'fog', 'rain', 'city', 'mean', 'answered %'
    ]
    assert row(rows, 'own', 'nearest; flagged: base')[2:] == [
        '70.0', '60.0', '50.0', '60.0', '100.0'
    ]
    assert row(rows, 'own', 'nearest; flagged: no prediction')[-1] == '20.0'
    assert row(rows, 'none', 'nearest; flagged: no prediction')[-1] == '90.0'
    flagged = table(text, 'flags as out-of-distribution, %:')
    assert row(flagged, 'none')[1:] == ['10.0'] * 4
    assert row(flagged, 'family')[1:] == ['80.0'] * 4


def test_sweep_has_a_table_of_its_own():
    title = "## Temperature of SemLA's weights, own expert removed"
    rows = table(markdown(fabricated(MIOUS, taus=(0.1, 0.2))), title)
    assert rows[0][0] == 'tau'
    # 3 / (1/10 + 1/20 + 1/20) = 15
    assert rows[1] == ['0.1', '10.0', '20.0', '20.0', '16.7', '15.0']
    assert rows[2][0] == '0.2'
    assert title not in markdown(fabricated(MIOUS))


def test_cells_that_are_not_left_out_entirely_are_marked():
    text = markdown(fabricated(MIOUS, leaks=LEAKS))
    own = table(text, "## The target's own expert removed")
    assert row(own, 'nearest expert')[1:4] == ['30.0†', '60.0‡', '60.0']
    assert row(own, 'oracle: own expert')[1] == '60.0'
    family = table(text, "## The experts of the target's family removed")
    assert row(family, 'nearest expert')[1:4] == ['20.0†', '40.0†', '60.0']
    policies = table(text, '## What becomes of out-of-distribution images')
    assert row(policies, 'own', 'nearest expert')[2] == '30.0†'
    assert row(policies, 'none', 'nearest expert')[2] == '50.0'
    assert ('- † without fog + rain: not left out entirely, the base was '
            'trained on fog.') in text
    assert ('- ‡ without rain: not left out entirely, city may have started '
            'from an expert that was removed.') in text


def test_cell_without_a_score_has_no_mark():
    results = fabricated({('own', 'unfamiliar_abstain'): (math.nan, 60, 60)},
                         leaks=LEAKS)
    rows = table(
        markdown(results), '## What becomes of out-of-distribution images')
    assert row(rows, 'own', 'nearest; flagged: no prediction')[2:] == [
        '-', '60.0‡', '60.0', '-', '20.0'
    ]


def test_family_without_which_nobody_is_left_is_named():
    everyone = dict.fromkeys(('fog', 'rain', 'city'), ('fog', 'rain', 'city'))
    text = markdown(fabricated(MIOUS, families=everyone))
    assert "No expert is left without the family of ['fog', 'rain'" in text


def test_name_with_a_bar_does_not_break_the_table():
    results = fabricated(MIOUS)
    text = markdown(results).replace('fog', 'f|g')
    assert 'f|g' in text
    from dataclasses import replace
    renamed = replace(results, tasks=('a|b', 'rain', 'city'), families={
        **results.families, 'a|b': ('a|b', )})  # yapf: disable
    assert '| a\\|b |' in markdown(renamed).replace('  ', ' ')


def test_csv_has_a_line_per_cell():
    text = csv_lines(fabricated(MIOUS, (0, 5), LEAKS))
    rows = list(csv.DictReader(io.StringIO(text)))
    found = [
        r for r in rows if (r['target'], r['scope'], r['method'],
                            r['seed']) == ('fog', 'family', 'nearest', '5')
    ]
    assert found == [
        dict(
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
    ]
    assert len([r for r in rows if r['method'] == 'oracle']) == 2 * 3
