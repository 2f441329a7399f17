# SPDX-License-Identifier: Apache-2.0
"""Samples whose augmentation depends on their position alone."""
from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mmseg_mile.engine.task_images import SeededDataset


class Noise:
    """Draws from every generator that transforms use."""

    metainfo = dict(classes=('road', ))

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return (index, random.random(), np.random.rand(), torch.rand(
            ()).item())


def load(num_workers, start=0):
    loader = DataLoader(
        SeededDataset(Noise(), 0, 'day'),
        batch_size=2,
        num_workers=num_workers,
        sampler=[(p, p % 4) for p in range(start, 6)],
        collate_fn=list)
    return [sample for batch in loader for sample in batch]


def test_position_decides():
    dataset = SeededDataset(Noise(), 0, 'day')
    assert dataset[7, 1] == dataset[7, 1] != dataset[8, 1]


@pytest.mark.parametrize('other', [(1, 'day'), (0, 'night')])
def test_seed_and_task_decide(other):
    assert SeededDataset(Noise(), 0,
                         'day')[7, 1] != SeededDataset(Noise(), *other)[7, 1]


@pytest.mark.parametrize('num_workers', [1, 3])
def test_number_of_workers_does_not(num_workers):
    assert load(num_workers) == load(0)


def test_samples_do_not_depend_on_those_before():
    assert load(0, start=3) == load(0)[3:]


def test_process_draws_as_without_it():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    SeededDataset(Noise(), 0, 'day')[0, 0]
    assert torch.equal(torch.rand(2), expected)


def test_dataset_is_described():
    dataset = SeededDataset(Noise(), 0, 'day')
    assert (len(dataset), dataset.metainfo) == (4, Noise.metainfo)
