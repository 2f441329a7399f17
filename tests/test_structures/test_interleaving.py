# SPDX-License-Identifier: Apache-2.0
"""The order of a dataset that several processes share."""
from __future__ import annotations

import pytest
from mmengine.dataset import DefaultSampler

from mmseg_mile.structures.interleaving import interleave


@pytest.mark.parametrize('count', [1, 2, 3, 5])
@pytest.mark.parametrize('length', [1, 3, 6, 7])
def test_shares_of_the_sampler_come_back_in_order(monkeypatch, count, length):
    shares = []
    for rank in range(count):
        monkeypatch.setattr(
            'mmengine.dataset.sampler.get_dist_info',
            lambda rank=rank: (rank, count))
        shares.append(
            list(DefaultSampler(range(length), shuffle=False, round_up=False)))
    assert interleave(shares) == list(range(length))


@pytest.mark.parametrize('shares', [[[0], [1, 2]], [[0, 1, 2], [3]]])
def test_shares_of_no_dataset_are_refused(shares):
    with pytest.raises(ValueError, match="round_up=False"):
        interleave(shares)
