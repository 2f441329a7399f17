# SPDX-License-Identifier: Apache-2.0
"""The metainfo of a prediction."""
from __future__ import annotations

import torch

from mmseg_mile.methods.mile.expert_heads import LabelSpace
from mmseg_mile.methods.mile.expert_segmentor import routing_info
from mmseg_mile.structures import Routing


def test_metainfo_is_that_of_the_image():
    routing = Routing(('day', 'fog', 'night'),
                      torch.tensor([[1., 0, 0], [0.25, 0, 0.75]]),
                      torch.tensor([[0.5, 2, 3], [1, 4, 0.25]]),
                      torch.tensor([False, True]),
                      ood_score=torch.tensor([0.5, 1.25]))
    labels = LabelSpace(('road', 'sky'), ((0, 0, 0), (1, 2, 3)))
    assert routing_info(routing, 1, labels) == dict(
        expert='night',
        classes=('road', 'sky'),
        palette=((0, 0, 0), (1, 2, 3)),
        mixture=dict(day=0.25, night=0.75),
        distances=dict(day=1.0, fog=4.0, night=0.25),
        ood=True,
        ood_score=1.25,
        abstained=False)


def test_image_without_experts_names_none():
    routing = Routing(('day', ), torch.zeros(2, 1), torch.ones(2, 1),
                      torch.tensor([True, True]), torch.tensor([False, True]))
    labels = LabelSpace(('road', ), ((0, 0, 0), ))
    infos = [routing_info(routing, index, labels) for index in (0, 1)]
    assert [info['expert'] for info in infos] == [None, None]
    assert [info['mixture'] for info in infos] == [{}, {}]
    assert [info['abstained'] for info in infos] == [False, True]
    assert [info['ood_score'] for info in infos] == [None, None]
