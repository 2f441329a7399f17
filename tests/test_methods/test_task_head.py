# SPDX-License-Identifier: Apache-2.0
"""Heads of a task: their config, and what they take over from others."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from mmseg_mile.methods.continual_segmentor import (build_head, copy_matching,
                                                    head_config)


def test_template_stays_as_it_was():
    template = dict(type='FCNHead', num_classes=19, loss_decode=dict(a=1))
    config = head_config(template, 3)
    config['loss_decode']['a'] = 2
    assert config['num_classes'] == 3
    assert template == dict(
        type='FCNHead', num_classes=19, loss_decode=dict(a=1))


@pytest.mark.parametrize('as_list', [False, True])
def test_class_weights_of_another_length_are_refused(as_list):
    loss = dict(type='CrossEntropyLoss', class_weight=[1.0, 2.0])
    template = dict(loss_decode=[loss] if as_list else loss)
    assert head_config(template, 2)['num_classes'] == 2
    with pytest.raises(ValueError, match='has 2 values, the task has 3 cla'):
        head_config(template, 3)


def test_sync_bn_becomes_bn_in_one_process(toys):
    template = dict(toys.config['decode_head'], norm_cfg=dict(type='SyncBN'))
    head = build_head(head_config(template, 2), torch.device('cpu'))
    kinds = [type(m) for m in head.modules() if 'BatchNorm' in str(type(m))]
    assert kinds and nn.SyncBatchNorm not in kinds


class Head(nn.Module):
    """A convolution, a norm layer and a classifier."""

    def __init__(self, num_classes: int, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 1)
        self.norm = nn.BatchNorm2d(width)
        self.conv_seg = nn.Conv2d(width, num_classes, 1)


@pytest.fixture
def source():
    """A head whose rows of classes are 0, 1 and 2."""
    head = Head(3)
    head.norm.running_mean.fill_(5)
    head.norm.num_batches_tracked.fill_(8)
    for row in range(3):
        head.conv_seg.weight.data[row] = row
        head.conv_seg.bias.data[row] = row
    return head.state_dict()


def rows(head):
    """Give the first weight of each class, nan where it was drawn."""
    return [
        float(w[0]) if (w == w[0]).all() else float('nan')
        for w in head.conv_seg.weight.flatten(1)
    ]


def test_rows_are_matched_by_the_name_of_the_class(source):
    head = Head(4)
    copy_matching(head, source, ('sky', 'new', 'road', 'other'),
                  ('road', 'lamp', 'sky'))
    assert rows(head)[::2] == [2, 0]
    assert torch.tensor(rows(head))[1::2].isnan().all()
    assert head.conv_seg.bias[[0, 2]].tolist() == [2, 0]


def test_equal_numbers_of_classes_are_matched_by_name_too(source):
    head = Head(3)
    copy_matching(head, source, ('a', 'b', 'c'), ('c', 'a', 'b'))
    assert rows(head) == [1, 2, 0]


def test_same_classes_are_copied_whole(source):
    head = Head(3)
    copy_matching(head, source, ('a', 'b', 'c'), ('a', 'b', 'c'))
    state = head.state_dict()
    assert all(torch.equal(state[k], v) for k, v in source.items())


def test_all_but_the_classifier_is_copied_with_statistics(source):
    head = Head(2)
    copy_matching(head, source, ('x', 'y'), ('a', 'b', 'c'))
    assert torch.equal(head.conv.weight, source['conv.weight'])
    assert (head.norm.running_mean == 5).all()
    assert head.norm.num_batches_tracked == 8


def test_tensors_of_another_shape_stay_as_drawn(source):
    head = Head(3, width=6)
    before = {k: v.clone() for k, v in head.state_dict().items()}
    copy_matching(head, source, ('a', 'b', 'c'), ('a', 'b', 'c'))
    for key in ('conv.weight', 'norm.weight', 'conv_seg.weight'):
        assert torch.equal(head.state_dict()[key], before[key])


def test_values_are_not_shared(source):
    head = Head(3)
    copy_matching(head, source, ('a', 'b', 'c'), ('a', 'b', 'c'))
    head.conv.weight.data.zero_()
    assert source['conv.weight'].any()
