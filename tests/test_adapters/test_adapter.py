# SPDX-License-Identifier: Apache-2.0
"""Adapters that fit a backbone and a config, and those that do not."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmseg_mile.adapters.adapter import Adapter


def adapter(value: float, scaling: float = 1.0, **norm: Tensor) -> Adapter:
    """Adapt layer ``a`` (2, 3) by ``value`` in each entry of ``B A``."""
    return Adapter(
        {
            'a.lora_A.weight': torch.ones(1, 3),
            'a.lora_B.weight': torch.full((2, 1), value)
        }, norm, scaling)


def base() -> dict[str, Tensor]:
    """Give layer ``a`` and a norm layer some values."""
    return {
        'a.weight': torch.ones(2, 3),
        'b.weight': torch.zeros(4),
        'n.weight': torch.tensor([1.0, 1.0]),
        'n.num_batches_tracked': torch.tensor(7)
    }


def test_clone_shares_no_tensor():
    first = adapter(1., **{'n.weight': torch.zeros(2)})
    second = first.clone()
    second.lora['a.lora_B.weight'].add_(1)
    second.norm['n.weight'].add_(1)
    assert torch.equal(first.lora['a.lora_B.weight'], torch.ones(2, 1))
    assert torch.equal(first.norm['n.weight'], torch.zeros(2))


def test_adapter_that_fits_is_accepted():
    adapter(1., **{'n.weight': torch.zeros(2)}).check_fit('day', base())


@pytest.mark.parametrize('change, named', [
    ({'a.lora_A.weight': torch.ones(1, 4)}, 'a'),
    ({'a.lora_A.weight': torch.ones(2, 3)}, 'a'),
    ({'x.lora_A.weight': torch.ones(1, 3),
      'x.lora_B.weight': torch.ones(2, 1)}, 'x'),
    ({'b.lora_A.weight': torch.ones(1, 3)}, 'b.lora_B.weight'),
    ({'b.lora_B.weight': torch.ones(1, 3)}, 'b.lora_B.weight'),
    ({'stray': torch.ones(1)}, 'stray'),
])  # yapf: disable
def test_adapter_of_another_shape_is_refused(change, named):
    wrong = adapter(1.)
    wrong.lora.update(change)
    with pytest.raises(ValueError, match=rf"'day' does not fit.*'{named}'"):
        wrong.check_fit('day', base())


def test_norm_of_another_shape_is_refused():
    wrong = adapter(1., **{'n.weight': torch.zeros(3)})
    with pytest.raises(ValueError, match="'n.weight'"):
        wrong.check_fit('day', base())


def test_adapter_without_tensors_is_refused():
    with pytest.raises(ValueError, match='it has no adapter'):
        Adapter({}, {}, 1.0).check_fit('day', base())


@pytest.mark.parametrize('targets, config, scaling', [
    (['a', 'b'], dict(r=1, lora_alpha=1), 1.0),
    (['a'], dict(r=2, lora_alpha=2), 1.0),
    (['a'], dict(r=1, lora_alpha=1), 2.0),
])  # yapf: disable
def test_other_settings_are_refused(targets, config, scaling):
    with pytest.raises(ValueError, match="'day' has 1 layers of rank"):
        adapter(1., scaling).check_settings('day', targets, config, False)


def test_norms_that_would_not_be_trained_are_refused():
    owner = adapter(1., **{'n.weight': torch.zeros(2)})
    owner.check_settings('day', ['a'], dict(r=1, lora_alpha=1), True)
    with pytest.raises(ValueError, match='1 norm tensors.*train_norm=False'):
        owner.check_settings('day', ['a'], dict(r=1, lora_alpha=1), False)


@pytest.mark.parametrize('lora, adapts, found', [
    (False, True, 'no'),
    (True, False, 'an'),
])  # yapf: disable
def test_adapter_must_be_there_or_not_as_asked(lora, adapts, found):
    base = dict(a=torch.zeros(2, 2))
    one = Adapter({}, {}, 1.0)
    if lora:
        one = Adapter(
            {
                'a.lora_A.weight': torch.zeros(1, 2),
                'a.lora_B.weight': torch.zeros(2, 1)
            }, {}, 1.0)
        base = {'a.weight': torch.zeros(2, 2)}
    one.check_fit('day', base, not adapts)
    one.check_fit('day', base, None)
    with pytest.raises(ValueError, match=f'it has {found} adapter'):
        one.check_fit('day', base, adapts)
