# SPDX-License-Identifier: Apache-2.0
"""Multiply-adds of a prediction."""
from __future__ import annotations

import torch
from torch import nn

from mmseg.structures import SegDataSample
from mmseg_mile.engine.task_evaluator import count_macs
from mmseg_mile.structures import Task

TASK = Task('day', ('road', ), ((0, 0, 0), ), {}, {})


class Convolution(nn.Module):
    """Merges weights in its first prediction, as an expert's are."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, padding=1)
        self.merged = None
        self.tasks = []

    def test_step(self, batch):
        assert len(batch['inputs']) == 1
        self.tasks.append(batch['data_samples'][0].task)
        if self.merged is None:
            self.merged = torch.ones(8, 8) @ torch.ones(8, 8)
        return self.layer(batch['inputs'][0][None])


def test_macs_of_one_image_without_the_merge():
    model = Convolution()
    batch = dict(
        inputs=[torch.zeros(3, 5, 6)] * 2,
        data_samples=[SegDataSample(), SegDataSample()])
    # 5 x 6 positions, 4 outputs of 3 x 3 x 3 inputs
    assert count_macs(model, TASK, [batch, batch]) == 30 * 4 * 27
    assert model.tasks == ['day', 'day'] and not model.training


def test_process_without_images_knows_nothing():
    assert count_macs(Convolution(), TASK, []) is None
