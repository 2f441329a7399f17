# SPDX-License-Identifier: Apache-2.0
"""What the methods share: the contract's defaults, and heads per task."""
from __future__ import annotations

import pytest
import torch
from mmengine.config import ConfigDict
from torch import nn

from mmseg_mile.methods.continual_segmentor import (ContinualSegmentor,
                                                    build_head, copy_matching,
                                                    head_config)


class PlainSegmentor(ContinualSegmentor):
    """A method that keeps nothing."""

    def begin_task(self, task, loader):
        """Decode in the task's classes."""
        self.set_decode_head(
            self.new_head(task.num_classes), task.classes, task.palette)
        self.renew_auxiliary_heads(task.num_classes)

    def end_task(self, task, loader):
        """Let the auxiliary heads go."""
        self.drop_auxiliary_heads()

    def save_task(self, task, folder, provenance):
        """Write nothing."""

    def load_tasks(self, tasks, folder):
        """Read nothing."""


@pytest.fixture
def plain(toys):
    """A stock backbone in a method without experts."""

    def build(**changes):
        names = ('decode_head', 'auxiliary_head', 'data_preprocessor',
                 'train_cfg', 'test_cfg')
        config = {name: toys.config[name] for name in names}
        config['backbone'] = toys.config['backbone']['backbone']
        return PlainSegmentor(**ConfigDict({**config, **changes}))

    return build


# -- the contract ------------------------------------------------------------


def test_prediction_names_its_label_space(plain, toys):
    model = plain()
    toys.learn(model, 'night')
    sample, = toys.predict(model, 'day')
    assert sample.classes == toys.task('night').classes
    assert sample.palette == toys.task('night').palette
    assert sample.expert is None


def test_method_without_experts_says_so(plain, toys):
    model = plain()
    assert model.expert_names == () and model.expert_costs('folder') == []
    assert model.gate is None and not model.supports_parallel
    assert model.routing_stats() == {}
    with pytest.raises(ValueError, match="PlainSegmentor has no expert 'day'"):
        with model.forced('day'):
            pass
    with pytest.raises(ValueError, match='PlainSegmentor has no experts to r'):
        model.reuse_expert(toys.task('day'), [], None)


def test_kept_cost_counts_the_network_and_the_experts(plain):
    model = plain(auxiliary_head=None)
    state = model.state_dict().values()
    expert = dict(
        lora_params=1,
        head_params=2,
        norm_params=3,
        prototype_values=4,
        bytes=100)
    assert model.kept_cost([expert, expert]) == dict(
        params=sum(v.numel() for v in state) + 20,
        bytes=sum(v.nbytes for v in state) + 200)


@pytest.mark.parametrize('as_list', [False, True])
def test_class_weights_that_do_not_fit_a_task_are_refused(
        plain, toys, as_list):
    loss = dict(type='CrossEntropyLoss', class_weight=[1.0, 2.0])
    head = dict(
        toys.config['decode_head'],
        num_classes=2,
        loss_decode=[loss] if as_list else loss)
    model = plain(decode_head=head)
    model.begin_task(toys.task('day'), [])
    with pytest.raises(ValueError, match='the task has 3 classes'):
        model.begin_task(toys.task('night'), [])
    with pytest.raises(ValueError, match='the task has 3 classes'):
        model.check_stream([toys.task('day'), toys.task('night')])


def test_training_is_not_computed_in_the_type_to_predict_in(plain, toys):
    model, seen = plain(predict_dtype='bfloat16'), []
    model.begin_task(toys.task('day'), [])
    model.decode_head.conv_seg.register_forward_hook(
        lambda _, __, out: seen.append(out.dtype))
    toys.train(model, 'day', 1)
    assert seen == [torch.float32]


def test_memory_layout_changes_no_result(plain, toys):
    models = []
    for channels_last in (False, True):
        torch.manual_seed(3)
        model = plain(channels_last=channels_last, keep_logits=True)
        model.begin_task(toys.task('day'), [])
        for module in (model.backbone.layer1[0].conv1,
                       model.decode_head.convs[0].conv):
            assert channels_last == module.weight.is_contiguous(
                memory_format=torch.channels_last)
        models.append(model)
    one, two = (toys.predict(m, 'day')[0].seg_logits.data for m in models)
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_sync_bn_becomes_bn_in_one_process(plain, toys):
    template = dict(toys.config['decode_head'], norm_cfg=dict(type='SyncBN'))
    head = build_head(head_config(template, 2), torch.device('cpu'))
    kinds = [
        type(m) for network in (head, plain().backbone)
        for m in network.modules() if 'BatchNorm' in type(m).__name__
    ]
    assert kinds and nn.SyncBatchNorm not in kinds


# -- heads of tasks ----------------------------------------------------------


def test_heads_of_each_task_have_its_number_of_classes(plain, toys):
    model = plain()
    for name, number in (('day', 2), ('night', 3)):
        model.begin_task(toys.task(name), [])
        assert model.num_classes == model.out_channels == number
        assert model.auxiliary_head[0].num_classes == number
    model.end_task(toys.task('night'), [])
    assert not model.with_auxiliary_head
    model = plain(auxiliary_head=None)
    model.begin_task(toys.task('day'), [])
    assert not model.with_auxiliary_head


def test_other_head_decodes_inside_its_block_only(plain, toys):
    model = plain()
    model.begin_task(toys.task('day'), [])
    head, other = model.decode_head, model.new_head(3)
    with pytest.raises(KeyError), model.decoding_with(other):
        assert model.decode_head is other and model.out_channels == 3
        raise KeyError
    assert model.decode_head is head and model.out_channels == 2
    assert model.classes == toys.task('day').classes


@pytest.mark.parametrize('outputs, fits', [(None, (2, 3)), (1, (2, )),
                                           (3, (3, ))])
def test_outputs_that_do_not_fit_a_task_are_refused(plain, toys, outputs,
                                                    fits):
    model, tasks = plain(), [toys.task('day'), toys.task('night')]
    model.head_template['out_channels'] = outputs
    for task in tasks:
        if task.num_classes in fits:
            model.check_stream([task])
            continue
        with pytest.raises(ValueError, match=f'out_channels is {outputs}, '):
            model.check_stream(tasks)


def test_template_stays_as_it_was():
    template = dict(type='FCNHead', num_classes=19, loss_decode=dict(a=1))
    config = head_config(template, 3)
    config['loss_decode']['a'] = 2
    assert config['num_classes'] == 3
    assert template == dict(
        type='FCNHead', num_classes=19, loss_decode=dict(a=1))


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


# Of classes a, b and c; nan is drawn.
NAN = float('nan')


@pytest.mark.parametrize('classes, wanted',
                         [(('a', 'b', 'c'), [0, 1, 2]),
                          (('c', 'a', 'b'), [2, 0, 1]),
                          (('c', 'new', 'a', 'other'), [2, NAN, 0, NAN]),
                          (('x', 'y'), [NAN, NAN])])
def test_rows_are_matched_by_the_name_of_the_class(source, classes, wanted):
    head = Head(len(classes))
    copy_matching(head, source, classes, ('a', 'b', 'c'))
    rows = [
        float(w[0]) if (w == w[0]).all() else NAN
        for w in head.conv_seg.weight.flatten(1)
    ]
    assert rows == pytest.approx(wanted, nan_ok=True)
    for value, bias in zip(wanted, head.conv_seg.bias.tolist()):
        assert value != value or bias == value
    # all but the classifier is copied, with its statistics
    assert torch.equal(head.conv.weight, source['conv.weight'])
    assert (head.norm.running_mean == 5).all()
    assert head.norm.num_batches_tracked == 8
    head.conv.weight.data.zero_()
    assert source['conv.weight'].any()


@pytest.mark.parametrize('rows', [(1, 1), (1, 2), (2, 1)])
def test_single_output_is_no_row_of_a_class(rows):
    head, source = Head(rows[0]), Head(rows[1])
    before = head.conv_seg.weight.clone()
    copy_matching(head, source.state_dict(), ('b', 'a'), ('a', 'b'))
    assert torch.equal(head.conv_seg.weight, before)
    assert torch.equal(head.conv.weight, source.conv.weight)


def test_tensors_of_another_shape_stay_as_drawn(source):
    head = Head(3, width=6)
    before = {k: v.clone() for k, v in head.state_dict().items()}
    copy_matching(head, source, ('a', 'b', 'c'), ('a', 'b', 'c'))
    for key in ('conv.weight', 'norm.weight', 'conv_seg.weight'):
        assert torch.equal(head.state_dict()[key], before[key])
