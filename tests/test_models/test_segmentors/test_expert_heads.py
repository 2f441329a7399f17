# SPDX-License-Identifier: Apache-2.0
"""One module per kind of head, the values of every expert."""
from __future__ import annotations

import pytest
import torch

CPU = torch.device('cpu')


def test_experts_of_one_config_share_a_module(learned):
    heads = learned.heads
    night = heads.module('night', CPU)
    assert torch.equal(night.conv_seg.weight,
                       heads['night'].state['conv_seg.weight'])
    fog = heads.module('fog', CPU)
    assert fog is night
    assert torch.equal(fog.conv_seg.weight,
                       heads['fog'].state['conv_seg.weight'])
    assert heads.module('day', CPU) is not night


def test_module_is_ready_to_predict(learned):
    assert not learned.heads.module('day', CPU).training


def test_kept_values_are_copies(learned, toys):
    task, head = toys.task('day'), learned.new_head(2)
    learned.heads.keep(task, head, learned.heads['day'].config)
    head.conv_seg.weight.data.fill_(7)
    assert not (learned.heads['day'].state['conv_seg.weight'] == 7).any()


def test_removed_head_is_gone(learned):
    learned.heads.remove('day')
    assert learned.heads.names == ('night', 'fog')


@pytest.mark.parametrize('use', [
    lambda heads: heads['snow'], lambda heads: heads.remove('snow'),
    lambda heads: heads.module('snow', CPU)
])  # yapf: disable
def test_unknown_expert_is_refused(learned, use):
    with pytest.raises(ValueError, match="'snow'; experts:.*'night'"):
        use(learned.heads)


def test_stored_head_that_does_not_fit_is_refused(learned, fresh):
    expert = learned.export_expert('day')
    expert.head = {k: v for k, v in expert.head.items() if 'seg' not in k}
    with pytest.raises(ValueError, match="head of expert 'day' does not fit"):
        fresh.heads.add(expert, CPU)
    assert fresh.heads.names == ()
