# SPDX-License-Identifier: Apache-2.0
"""The metainfo of a prediction."""
from __future__ import annotations

import torch

from mmseg_mile.models.segmentors.expert_heads import LabelSpace
from mmseg_mile.models.segmentors.routing_info import routing_info
from mmseg_mile.structures import Routing


def test_metainfo_is_that_of_the_image():
    routing = Routing(('day', 'fog', 'night'),
                      torch.tensor([[1., 0, 0], [0.25, 0, 0.75]]),
                      torch.tensor([[0.5, 2, 3], [1, 4, 0.25]]),
                      torch.tensor([False, True]))
    labels = LabelSpace(('road', 'sky'), ((0, 0, 0), (1, 2, 3)))
    assert routing_info(routing, 1, labels) == dict(
        expert='night',
        classes=('road', 'sky'),
        palette=((0, 0, 0), (1, 2, 3)),
        mixture=dict(day=0.25, night=0.75),
        distances=dict(day=1.0, fog=4.0, night=0.25),
        unfamiliar=True)
