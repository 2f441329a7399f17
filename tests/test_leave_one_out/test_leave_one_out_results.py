# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math

import numpy as np
import pytest
from fabricated_left_out import LEAKS, fabricated

from mmseg_mile.evaluation.leave_one_out import LeaveOneOut, scopes_of

MIOUS = {
    ('none', 'oracle'): (60, 60, 60),
    ('own', 'nearest'): (30, 60, 60),
    ('family', 'nearest'): (20, 40, 60),
}


def test_oracle_is_the_same_whatever_is_removed():
    results = fabricated(MIOUS)
    for scope in ('none', 'own', 'family'):
        assert results.values(scope, 'oracle').tolist() == [[60, 60, 60]]


def test_task_without_family_is_the_same_in_both_scopes():
    results = fabricated({**MIOUS, ('family', 'nearest'): (20, 40, 0)})
    assert results.values('family', 'nearest').tolist() == [[20, 40, 60]]


def test_means_over_the_targets():
    results = fabricated(MIOUS)
    assert results.mean('own', 'nearest').mean == 50
    # 3 / (1/30 + 1/60 + 1/60)
    assert results.harmonic('own', 'nearest').mean == pytest.approx(45)
    assert math.isnan(results.mean('own', 'nearest').deviation)


def test_means_are_taken_per_seed_before_their_spread():
    results = fabricated(MIOUS, seeds=(0, 1))
    # 50 and 52
    assert results.mean('own', 'nearest') == pytest.approx((51, 2**0.5, 2))
    second = 3 / (1 / 32 + 1 / 62 + 1 / 62)
    harmonic = results.harmonic('own', 'nearest')
    assert harmonic.mean == pytest.approx((45 + second) / 2)
    assert harmonic.deviation == pytest.approx((second - 45) / 2**0.5)


def test_one_target_at_zero_makes_the_harmonic_mean_zero():
    results = fabricated({('own', 'nearest'): (0, 60, 60)})
    assert results.harmonic('own', 'nearest').mean == 0


def test_cell_that_was_not_evaluated_is_no_number():
    results = fabricated({},
                         families=dict.fromkeys(('fog', 'rain', 'city'),
                                                ('fog', 'rain', 'city')))
    assert np.isnan(results.values('family', 'unheard')).all()
    assert math.isnan(results.mean('own', 'unheard').mean)
    assert math.isnan(results.harmonic('own', 'unheard').mean)


def test_other_figures_of_a_cell():
    results = fabricated(MIOUS)
    flagged = results.values('own', 'nearest', lambda s: s.flagged / s.images)
    assert flagged.tolist() == [[0.8, 0.8, 0.8]]


def test_family_scope_is_there_where_a_family_is():
    assert scopes_of(fabricated({})) == ['none', 'own', 'family']
    alone = {name: (name, ) for name in ('fog', 'rain', 'city')}
    assert scopes_of(fabricated({}, families=alone)) == ['none', 'own']


def test_leaks_are_those_of_any_run():
    results = fabricated(MIOUS, (0, 1), LEAKS)
    assert results.leaks_of(('fog', )) == [LEAKS[0]]
    assert results.leaks_of(('city', )) == []


def test_file_is_read_as_it_was_written(tmp_path):
    results = fabricated(MIOUS, (0, 3), LEAKS, taus=(0.1, ))
    results.save(tmp_path / 'a.json')
    again = LeaveOneOut.load(tmp_path / 'a.json')
    assert again == results
    assert again.methods[-1] == 'fused_adapters_tau_0.1'


@pytest.mark.parametrize('field, value, message', [
    ('schema', 2, 'schema is 2'),
    ('stream', 1, 'stream must be of type str'),
    ('tasks', ['fog', 'fog'], 'tasks must be a list'),
    ('families', dict(fog=['fog']), 'families must have the keys'),
    ('runs', [dict(seed=1)], 'a run must have the keys'),
    ('runs', 3, 'not iterable'),
])
def test_broken_file_is_named_with_the_field(tmp_path, field, value, message):
    path = tmp_path / 'a.json'
    fabricated(MIOUS).save(path)
    document = dict(json.loads(path.read_text()), **{field: value})
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=f'a.json holds no .*{message}'):
        LeaveOneOut.load(path)


def test_leak_of_another_kind_is_refused(tmp_path):
    path = tmp_path / 'a.json'
    fabricated(MIOUS, leaks=LEAKS).save(path)
    path.write_text(path.read_text().replace('"kind": "base"',
                                             '"kind": "rumour"'))
    with pytest.raises(ValueError, match="kind of a leak must .*'rumour'"):
        LeaveOneOut.load(path)
