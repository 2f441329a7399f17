# SPDX-License-Identifier: Apache-2.0
"""Who started from whom, and what follows for predictions."""
from __future__ import annotations

import math

import pytest
import torch

from mmseg_mile.methods.mile.child_averaging import (Lineage, child_mixtures,
                                                     mixed)
from mmseg_mile.structures import Routing

SAME = ('road', 'sky')


@pytest.fixture
def lineage():
    """day -> night -> snow, day -> fog, and thermal from the base."""
    line = Lineage()
    for name, source in dict(
            day={},
            night=dict(day='of day'),
            fog=dict(day='of day'),
            snow=dict(night='of night'),
            thermal={}).items():
        line.begin(name, source)
    return line


def test_descendants_are_children_and_theirs(lineage):
    assert lineage.children('day') == ['night', 'fog', 'snow']
    assert lineage.children('night') == ['snow']
    assert lineage.children('snow') == []
    assert lineage.children('thermal') == []


def test_expert_of_several_is_a_child_of_each(lineage):
    lineage.begin('both', dict(snow='of snow', thermal='of thermal'))
    assert lineage.children('thermal') == ['both']
    assert lineage.children('night') == ['snow', 'both']


def test_expert_of_which_nothing_is_known_has_no_parents():
    line = Lineage()
    line.begin('day', {})
    line.add('found', {})
    assert line.children('day') == []
    assert line.provenance('day') == dict(started_from={})
    assert line.provenance('found') == {}


def test_renamed_experts_still_know_each_other(lineage):
    again = Lineage()
    # in any order
    for name in ('snow', 'night', 'day'):
        again.add('my_' + name,
                  dict(lineage.provenance(name), weights_sha256=f'of {name}'))
    assert again.children('my_day') == ['my_night', 'my_snow']


def test_expert_that_is_its_own_ancestor_ends_the_search():
    line = Lineage()
    line.add('a', dict(started_from=dict(b='1'), weights_sha256='0'))
    line.add('b', dict(started_from=dict(a='0'), weights_sha256='1'))
    assert line.children('a') == ['b']


def mixtures(lineage, temperature=0.5, **labels):
    names = ('day', 'night', 'fog', 'snow')
    distances = torch.tensor([[2., 4, 2, 8], [9, 1, 9, 1], [9, 9, 3, 9],
                              [9, 9, 9, 0]])
    labels = {name: labels.get(name, SAME) for name in names}
    return child_mixtures(lineage, names, distances, temperature, labels)


def test_weights_fall_with_the_distance_to_the_descendant(lineage):
    found = mixtures(lineage)
    raw = dict(day=1, night=math.exp(-2), fog=1, snow=math.exp(-6))
    total = sum(raw.values())
    assert found['day'] == pytest.approx({
        n: w / total
        for n, w in raw.items()
    },
                                         rel=1e-6)
    assert found['night'] == dict(night=.5, snow=.5)
    assert found['fog'] == dict(fog=1)
    # of equal images nothing else is as near
    assert found['snow'] == dict(snow=1)


def test_descendant_of_another_label_space_is_left_out(lineage):
    found = mixtures(lineage, night=('lamp', 'road'))
    assert set(found['day']) == {'day', 'fog', 'snow'}
    assert found['night'] == dict(night=1)


def test_only_single_experts_are_replaced():
    routing = Routing(('a', 'b'), torch.tensor([[1., 0], [.5, .5], [0, 0]]),
                      torch.zeros(3, 2), torch.zeros(3, dtype=torch.bool))
    found = mixed(routing, dict(a=dict(a=.75, b=.25), b=dict(b=1.)))
    assert found.weights.tolist() == [[.75, .25], [.5, .5], [0, 0]]
    assert routing.weights[0].tolist() == [1, 0]


@pytest.fixture
def chain(toys):
    """day -> night -> fog, of one label space."""
    model = toys.model(init_from='previous', child_averaging=50.0)
    for name in ('day', 'night', 'fog'):
        toys.learn(model, name, classes=SAME)
    return model.eval()


def test_prediction_mixes_the_descendants_in(chain, toys):
    day, night, fog = toys.predict(chain, 'day', 'night', 'fog')
    assert [set(s.mixture) for s in (day, night, fog)] == [
        {'day', 'night', 'fog'}, {'night', 'fog'}, {'fog'}]  # yapf: disable
    assert [s.expert for s in (day, night, fog)] == ['day', 'night', 'fog']


def test_forced_expert_speaks_alone(chain, toys):
    with chain.forced('day'):
        found, = toys.predict(chain, 'day')
    assert found.mixture == dict(day=1)


def test_new_expert_changes_the_mixtures(chain, toys):
    toys.predict(chain, 'day')
    with chain.without(['fog']):
        found, = toys.predict(chain, 'day')
    assert set(found.mixture) == {'day', 'night'}
    assert set(toys.predict(chain, 'day')[0].mixture) == {
        'day', 'night', 'fog'}  # yapf: disable


def test_lineage_travels_with_the_experts(chain, toys):
    other = toys.model(child_averaging=50.0)
    other.import_experts(
        [chain.export_expert(n) for n in ('day', 'night', 'fog')])
    assert other.lineage.children('day') == ['night', 'fog']
    mine, theirs = (toys.predict(m, 'day')[0] for m in (other, chain))
    assert torch.equal(mine.seg_logits.data, theirs.seg_logits.data)


def test_start_from_the_nearest_is_recorded(toys):
    model = toys.model()
    for name in ('day', 'night', 'fog'):
        toys.learn(model, name, init_from='nearest')
    day, fog = (model.export_expert(n).provenance for n in ('day', 'fog'))
    assert fog['started_from'] == dict(day=day['weights_sha256'])


@pytest.mark.parametrize(('changes', 'message'), [
    (dict(child_averaging=0), 'must be > 0 or None, got 0'),
    (dict(child_averaging=1., gate=dict(type='OracleGate')),
     'by distances, which OracleGate has not'),
])
def test_temperature_that_cannot_be_used_is_refused(toys, changes, message):
    with pytest.raises(ValueError, match=message):
        toys.model(**changes)
