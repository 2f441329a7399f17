# SPDX-License-Identifier: Apache-2.0
"""Children of experts, and their share in predictions."""
from __future__ import annotations

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mmseg_mile.methods.mile.lineage import (child_weights, children,
                                             origin_from, origin_of)

NEW = dict(started_from={}, ancestors=[])
SAME = ('road', 'sky')
NAMES = ('day', 'night', 'fog', 'snow')
# day -> night -> snow, day -> fog, and thermal from the base
STARTED_FROM = dict(
    day=[], night=['day'], fog=['day'], snow=['night'], thermal=[])


def origins(prefix: str = '', **more: list) -> dict:
    """Of experts that may be called otherwise by now."""
    found = {}
    for name, parents in {**STARTED_FROM, **more}.items():
        known = origin_from({n: f'of {n}' for n in parents}, found)
        found[name] = dict(known, weights_sha256=f'of {name}')
    return {prefix + name: origin for name, origin in found.items()}


@pytest.mark.parametrize('name, wanted', [
    ('day', {'night', 'fog', 'snow', 'both'}),
    ('night', {'snow', 'both'}),
    ('fog', set()),
    ('thermal', {'both'}),
])  # yapf: disable
@pytest.mark.parametrize('prefix', ['', 'my_'])
def test_children_are_known_in_any_order_and_by_any_name(name, wanted, prefix):
    known = origins(prefix, both=['snow', 'thermal'])
    backwards = dict(reversed(known.items()))
    for record in (known, backwards):
        assert children(prefix + name, record) == {prefix + n for n in wanted}


def test_expert_of_which_nothing_is_known_has_no_family():
    nothing = origin_of(SimpleNamespace(provenance=dict(seed=3)))
    assert nothing == NEW
    assert children('found', dict(origins(), found=nothing)) == set()


def test_expert_in_between_may_be_removed():
    known = origins()
    del known['night']
    assert children('day', known) == {'fog', 'snow'}


def test_child_of_another_expert_of_the_same_name_is_none():
    elsewhere = dict(day='of another day')
    known = dict(origins(), dusk=origin_from(elsewhere, dict(day=NEW)))
    assert 'dusk' not in children('day', known)


def test_expert_that_training_left_as_it_was_is_no_child_of_itself():
    known = origins()
    known['fog']['weights_sha256'] = 'of day'
    assert children('fog', known) == {'night', 'snow'}


def weights(classes=(SAME, ) * 4):
    """Rows of weights by name; distances of thermal are not asked for."""
    distances = torch.tensor([[2., 4, 2, 8], [9, 1, 9, 1], [9, 9, 3, 9],
                              [9, 9, 9, 0]])
    found = child_weights(NAMES, origins(), classes, distances, 0.5)
    return dict(zip(NAMES, found.tolist()))


def test_weights_fall_with_the_distance_to_the_child():
    found = weights()
    raw = [1, math.exp(-2), 1, math.exp(-6)]
    assert found['day'] == pytest.approx([w / sum(raw) for w in raw])
    assert found['night'] == [0, .5, 0, .5]
    assert found['fog'] == [0, 0, 1, 0]
    # of equal images nothing else is as near
    assert found['snow'] == [0, 0, 0, 1]


def test_child_of_another_label_space_is_left_out():
    found = weights([SAME, ('lamp', 'road'), SAME, SAME])
    assert found['day'][1] == 0 and found['day'][3] > 0
    assert found['night'] == [0, 1, 0, 0]


@pytest.fixture
def chain(toys):
    """day -> night -> fog, of one label space."""
    model = toys.model(init_from='previous', child_averaging=50.0)
    for name in ('day', 'night', 'fog'):
        toys.learn(model, name, classes=SAME)
    return model.eval()


def test_prediction_mixes_the_children_in(chain, toys):
    names = ('day', 'night', 'fog')
    found = toys.predict(chain, *names)
    assert [set(s.mixture) for s in found] == [
        {'day', 'night', 'fog'}, {'night', 'fog'}, {'fog'}]  # yapf: disable
    assert tuple(s.expert for s in found) == names
    with chain.forced('day'):
        forced, = toys.predict(chain, 'day')
    assert forced.mixture == dict(day=1)
    chain.gate.top_k = 2
    assert set(toys.predict(chain, 'fog')[0].mixture) == {'day', 'fog'}


def test_other_gate_changes_the_mixtures_inside_its_block(chain, toys):
    whole = toys.predict(chain, 'day')[0].mixture
    gate = copy.deepcopy(chain.gate)
    gate.remove('fog')
    with chain.gated(gate):
        assert set(toys.predict(chain, 'day')[0].mixture) == {'day', 'night'}
    assert toys.predict(chain, 'day')[0].mixture == whole


def test_parents_travel_with_the_experts(chain, toys):
    other = toys.model(child_averaging=50.0)
    other.import_experts(
        [chain.export_expert(n) for n in ('day', 'night', 'fog')])
    mine, theirs = (toys.predict(m, 'day')[0] for m in (other, chain))
    assert mine.mixture == theirs.mixture and len(mine.mixture) == 3
    assert torch.equal(mine.seg_logits.data, theirs.seg_logits.data)


def test_expert_that_is_replaced_under_its_name_is_weighed_anew(chain, toys):
    before = toys.predict(chain, 'day')[0].mixture
    fog = chain.export_expert('fog')
    prototypes = fog.parts['prototypes']
    far = dict(prototypes, centroids=prototypes['centroids'] + 5)
    chain.import_expert(replace(fog, parts=dict(fog.parts, prototypes=far)))
    after = toys.predict(chain, 'day')[0].mixture
    assert 'fog' in before and 'fog' not in after


def test_line_outlives_an_expert_in_between(chain, toys):
    other = toys.model(child_averaging=50.0)
    other.import_experts([chain.export_expert(n) for n in ('fog', 'day')])
    assert set(toys.predict(other, 'day')[0].mixture) == {'day', 'fog'}


@pytest.mark.parametrize(('changes', 'message'), [
    (dict(child_averaging=0), 'must be > 0 or None, got 0'),
    (dict(child_averaging=1., gate=dict(type='OracleGate')),
     'by distances, which OracleGate has not'),
])
def test_temperature_that_cannot_be_used_is_refused(toys, changes, message):
    with pytest.raises(ValueError, match=message):
        toys.model(**changes)
