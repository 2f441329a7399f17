# SPDX-License-Identifier: Apache-2.0
"""Weights by distance, policies for flagged images, argument checks."""
from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmseg_mile.gates.base_gate import (apply_ood_policy, check_bounds,
                                        check_choice, check_ood_policy,
                                        inverse_distance_weights,
                                        nearest_weights)
from mmseg_mile.structures import Routing

NAN = float('nan')


def routing(distances=((1., 2.), (5., 6.)), ood=(False, True)):
    """Of two images the second is flagged."""
    return Routing(('a', 'b'), torch.tensor([[1., 0.], [1., 0.]]),
                   torch.tensor(distances), torch.tensor(ood))


@pytest.mark.parametrize('policy', ['nearest', 'fuse', 'base', 'abstain'])
def test_images_in_distribution_stay_as_they_are(policy):
    before = routing(ood=(False, False))
    assert apply_ood_policy(before, policy) is before


def test_nearest_keeps_what_the_gate_says():
    before = routing()
    assert apply_ood_policy(before, 'nearest') is before


def test_fuse_mixes_the_nearest_experts():
    before = routing()
    after = apply_ood_policy(before, 'fuse')
    assert after.mixture(0) == {'a': 1}
    torch.testing.assert_close(after.weights[1],
                               nearest_weights(before.distances[1:])[0])
    assert 0.5 < after.mixture(1)['a'] < 1
    # the gate's own answer is not written to
    assert before.mixture(1) == {'a': 1}


def test_base_takes_the_experts_away():
    after = apply_ood_policy(routing(), 'base')
    assert [after.mixture(i) for i in (0, 1)] == [{'a': 1}, {}]
    assert after.abstains is None


def test_abstention_is_for_flagged_images_only():
    after = apply_ood_policy(routing(), 'abstain')
    assert after.abstains.tolist() == [False, True]


def test_fusion_needs_distances():
    with pytest.raises(ValueError, match="'fuse' weighs experts by distances"):
        apply_ood_policy(routing(((NAN, NAN), (NAN, NAN))), 'fuse')


def test_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="one of .*'abstain'.*, got 'guess'"):
        check_ood_policy('guess')


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_weights_are_the_softmax_of_inverse_distances():
    # 1 / (2 * .5) = 1 and 1 / (1 * .5) = 2
    weights = inverse_distance_weights(row(2, 1), tau=0.5)
    total = math.e + math.e**2
    torch.testing.assert_close(weights, row(math.e / total, math.e**2 / total))


@pytest.mark.parametrize('zero', [0.0, 1e-320])
def test_experts_at_distance_zero_share_all_the_weight(zero):
    weights = inverse_distance_weights(row(zero, 3, zero, 1), tau=0.05)
    assert weights.tolist() == [[.5, 0, .5, 0]]


def test_tiny_distances_and_temperatures_give_no_nan():
    weights = inverse_distance_weights(row(1e-200, 1e-190), tau=1e-6)
    assert weights.tolist() == [[1, 0]]


def test_only_the_nearest_have_a_weight():
    weights = nearest_weights(row(3, 1, 2, 4), top_k=2)
    assert (weights > 0).tolist() == [[False, True, True, False]]
    assert weights.sum() == pytest.approx(1)


def test_of_equally_near_experts_the_first_ones_are_chosen():
    weights = nearest_weights(row(1, 1, 1), top_k=2)
    torch.testing.assert_close(weights, row(.5, .5, 0))


def test_uniform_weights_look_at_the_order_alone():
    weights = nearest_weights(row(3, 1, 2), top_k=2, uniform=True)
    assert weights.tolist() == [[0, .5, .5]]


def test_relative_weights_do_not_depend_on_the_unit():
    far = row(30, 10, 20)
    torch.testing.assert_close(
        nearest_weights(far), nearest_weights(far / 1000))
    absolute = nearest_weights(far, relative=False)
    assert not absolute.allclose(nearest_weights(far / 1000, relative=False))


def test_relative_weights_of_an_image_on_a_prototype_are_all_its():
    assert nearest_weights(row(0, 1)).tolist() == [[1, 0]]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.floats(0, 1e300, allow_subnormal=False), min_size=1, max_size=6),
    st.floats(1e-6, 1e6), st.booleans())
def test_weights_sum_to_one_and_fall_with_distance(distances, tau, relative):
    weights = nearest_weights(row(*distances), 6, tau, relative)[0]
    assert weights.sum() == pytest.approx(1)
    assert not weights.isnan().any()
    order = row(*distances)[0].argsort(stable=True)
    assert (weights[order].diff() <= 1e-12).all()


def test_choice_names_what_is_allowed():
    check_choice('metric', 'cosine', ('cosine', 'other'))
    message = r"gate.metric must be one of \('cosine', 'other'\), got 'mine'"
    with pytest.raises(ValueError, match=message):
        check_choice('metric', 'mine', ('cosine', 'other'))


@pytest.mark.parametrize('value, bounds', [(1, (1, )), (9e9, (0, )),
                                           (1, (0, 1, True)), (0, (0, 1))])
def test_number_within_bounds_passes(value, bounds):
    check_bounds('tau', value, *bounds)


@pytest.mark.parametrize('value, bounds, allowed', [
    (0, (1, ), '>= 1'), (0, (0, math.inf, True), '> 0'),
    (math.inf, (0, ), '>= 0'), (math.nan, (0, 1), r'in \[0, 1]'),
    (0, (0, 1, True), r'in \(0, 1]'), (1.5, (0, 1, True), r'in \(0, 1]')
])  # yapf: disable
def test_number_out_of_bounds_is_named(value, bounds, allowed):
    with pytest.raises(
            ValueError, match=rf'gate.tau must be {allowed}, got {value}'):
        check_bounds('tau', value, *bounds)
