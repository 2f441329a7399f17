# SPDX-License-Identifier: Apache-2.0
"""Nested states, to JSON and tensors and back."""
from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mmseg_mile.engine.snapshot import pack, unpack


def there_and_back(value):
    tensors = {}
    text = json.dumps(pack(value, tensors, 'state'))
    return unpack(json.loads(text), {k: v.clone() for k, v in tensors.items()})


@pytest.mark.parametrize('value', [
    None, True, 3, 0.1 + 0.2, 1e-320, 'text', [], {}, (), [1, (2, [3])],
    {0: 'number', '0': 'text'}, {'tensor': 1}, {'a': {'dict': (None, )}}
])  # yapf: disable
def test_plain_values_come_back(value):
    again = there_and_back(value)
    assert again == value and type(again) is type(value)


def test_numbers_of_numpy_become_plain():
    assert there_and_back(np.float64(0.5)) == 0.5


def test_tensors_are_named_by_their_place():
    tensors, step = {}, torch.ones(2)
    pack({'optimizer': [{3: step}]}, tensors, 'state')
    assert list(tensors) == ['state/optimizer/0/3']
    assert tensors['state/optimizer/0/3'] is step


def test_optimizer_goes_on_as_before():
    weights = [torch.ones(3, requires_grad=True) for _ in range(2)]
    makers = [torch.optim.AdamW([w], lr=0.1) for w in weights]
    for _ in range(2):
        (weights[0]**3).sum().backward()
        makers[0].step()
        makers[0].zero_grad()
    with torch.no_grad():
        weights[1].copy_(weights[0])
    makers[1].load_state_dict(there_and_back(makers[0].state_dict()))
    for weight, maker in zip(weights, makers):
        (weight**3).sum().backward()
        maker.step()
    assert torch.equal(*weights)


def test_anything_else_is_refused_with_its_place():
    with pytest.raises(ValueError, match='state/hook/1 is a function'):
        pack({'hook': [1, lambda: None]}, {}, 'state')
