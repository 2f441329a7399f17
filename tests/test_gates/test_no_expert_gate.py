# SPDX-License-Identifier: Apache-2.0
"""A gate that asks no expert."""
from __future__ import annotations

import torch

from mmseg_mile.gates.simple_gates import NoExpertGate


def test_image_has_no_expert_but_distances_and_a_flag():
    gate = NoExpertGate(metric='euclidean', flag='shared')
    around = torch.tensor([[0., 0], [0, 2]] * 5)
    gate.fit('a', around)
    gate.fit('b', around + torch.tensor([9., 0]))
    routing = gate.route(torch.tensor([[8., 1.], [99., 1.]]), [None, None])
    assert routing.mixture(0) == {} == routing.mixture(1)
    assert routing.distances.tolist() == [[8, 1], [99, 90]]
    assert routing.ood.tolist() == [False, True]
    # whose head speaks
    assert routing.top_expert(0) == 'b'
