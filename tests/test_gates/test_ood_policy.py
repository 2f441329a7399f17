# SPDX-License-Identifier: Apache-2.0
"""What becomes of flagged images, and of them alone."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.gates.base_gate import (apply_ood_policy, check_ood_policy,
                                        nearest_weights)
from mmseg_mile.structures import Routing

NAN = float('nan')


def routing(distances=((1., 2.), (5., 6.)), ood=(False, True)):
    """The first image is familiar, the second is not."""
    return Routing(('a', 'b'), torch.tensor([[1., 0.], [1., 0.]]),
                   torch.tensor(distances), torch.tensor(ood))


@pytest.mark.parametrize('policy', ['nearest', 'fuse', 'base', 'abstain'])
def test_familiar_images_stay_as_they_are(policy):
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
