# SPDX-License-Identifier: Apache-2.0
"""Weighted means of many tensors at once."""
from __future__ import annotations

import torch

from mmseg_mile.adapters.adapter import NormStack

BASE = {
    'weight': torch.tensor([1.0, 1.0]),
    'scale': torch.tensor([[2.0], [4.0]]),
    'count': torch.tensor(7)
}


def test_each_tensor_is_the_weighted_mean_in_its_shape():
    states = [{
        'weight': torch.tensor([4.0, 8.0]),
        'scale': torch.tensor([[0.0], [1.0]])
    }, {
        'weight': torch.tensor([0.0, 4.0]),
        'scale': torch.tensor([[8.0], [1.0]])
    }]
    mean = NormStack(states).mean(BASE, [0.25, 0.75])
    assert torch.equal(mean['weight'], torch.tensor([1.0, 5.0]))
    assert torch.equal(mean['scale'], torch.tensor([[6.0], [1.0]]))


def test_base_stands_in_for_what_an_expert_does_not_own():
    # 'weight' is the first's and the third's, 'scale' the second's alone
    states = [{
        'weight': torch.tensor([5.0, 1.0])
    }, {
        'scale': torch.tensor([[4.0], [0.0]])
    }, {
        'weight': torch.tensor([9.0, 1.0])
    }]
    mean = NormStack(states).mean(BASE, [0.5, 0.25, 0.25])
    # 0.5 * 5 + 0.25 * 1 + 0.25 * 9, 0.75 * 2 + 0.25 * 4
    assert torch.equal(mean['weight'], torch.tensor([5.0, 1.0]))
    assert torch.equal(mean['scale'], torch.tensor([[2.5], [3.0]]))
    assert set(mean) == {'weight', 'scale'}


def test_nothing_that_it_was_made_of_is_written_to():
    own = {'weight': torch.tensor([5.0, 1.0])}
    before = {k: v.clone() for k, v in BASE.items()}
    mean = NormStack([own, {}]).mean(BASE, [0.5, 0.5])
    mean['weight'].zero_()
    assert torch.equal(own['weight'], torch.tensor([5.0, 1.0]))
    assert all(torch.equal(BASE[k], before[k]) for k in BASE)


def test_count_is_that_of_the_first_expert_or_of_the_base():
    nine = {'count': torch.tensor(9)}
    first = NormStack([nine, {}]).mean(BASE, [0.5, 0.5])
    second = NormStack([{}, nine]).mean(BASE, [0.5, 0.5])
    assert int(first['count']) == 9 and int(second['count']) == 7


def test_half_precision_is_summed_in_float32():
    states = [{'weight': torch.full((2, ), 1.0).half()}] * 3
    # in half precision the weights would sum to 0.9995
    weights = [0.3333, 0.3333, 0.3334]
    mean = NormStack(states).mean(BASE, weights)['weight']
    assert mean.dtype == torch.half
    assert torch.equal(mean, torch.ones(2).half())


def test_memory_is_that_of_the_values():
    states = [{'weight': torch.zeros(2)}, {'weight': torch.zeros(2)}]
    assert NormStack(states).num_bytes() == 2 * 2 * 4


def test_no_expert_has_no_mean():
    assert NormStack([]).mean(BASE, []) == {}
