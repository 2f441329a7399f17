# SPDX-License-Identifier: Apache-2.0
"""What the methods share."""
from __future__ import annotations

import copy

import pytest
import torch
from mmengine.config import ConfigDict
from torch import nn

from mmseg.models import EncoderDecoder
from mmseg_mile.methods.continual_segmentor import ContinualSegmentor


class PlainSegmentor(ContinualSegmentor):
    """A method that keeps nothing."""

    def begin_task(self, task, loader):
        """Speak the task's classes."""
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


def test_prediction_names_its_label_space(plain, toys):
    model = plain()
    toys.learn(model, 'night')
    sample, = toys.predict(model, 'day')
    assert sample.classes == toys.task('night').classes
    assert sample.palette == toys.task('night').palette
    assert sample.expert is None


def test_head_of_each_task_has_its_number_of_classes(plain, toys):
    model = plain()
    for name, number in (('day', 2), ('night', 3)):
        model.begin_task(toys.task(name), [])
        assert model.num_classes == model.out_channels == number
        assert model.auxiliary_head[0].num_classes == number


def test_no_auxiliary_head_where_none_is_configured(plain, toys):
    model = plain(auxiliary_head=None)
    model.begin_task(toys.task('day'), [])
    assert not model.with_auxiliary_head


def test_sync_bn_of_the_backbone_becomes_bn(plain):
    assert not any(
        isinstance(m, nn.SyncBatchNorm) for m in plain().backbone.modules())


def test_memory_layout_changes_no_result(plain, toys):
    models = []
    for channels_last in (False, True):
        torch.manual_seed(3)
        model = plain(channels_last=channels_last, keep_logits=True)
        model.begin_task(toys.task('day'), [])
        models.append(model)
    weights = [m.backbone.layer1[0].conv1.weight for m in models]
    assert weights[1].is_contiguous(memory_format=torch.channels_last)
    assert not weights[0].is_contiguous(memory_format=torch.channels_last)
    one, two = (toys.predict(m, 'day')[0].seg_logits.data for m in models)
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('mode', [
    dict(mode='whole'),
    dict(mode='slide', crop_size=(16, 24), stride=(12, 12))
])  # yapf: disable
def test_prediction_is_that_of_mmseg(plain, toys, mode):
    model = plain(keep_logits=True, test_cfg=mode)
    toys.learn(model, 'night')
    data = model.data_preprocessor(toys.batch('day', 'night'), False)
    mine = model.predict(**copy.deepcopy(data))
    with torch.no_grad():
        wanted = EncoderDecoder.predict(model, **data)
    for got, theirs in zip(mine, wanted):
        torch.testing.assert_close(got.seg_logits.data, theirs.seg_logits.data)
        assert torch.equal(got.pred_sem_seg.data, theirs.pred_sem_seg.data)


def test_logits_are_kept_only_where_that_is_asked_for(plain, toys):
    labels = []
    for keep_logits in (False, True):
        torch.manual_seed(3)
        model = plain(keep_logits=keep_logits)
        model.begin_task(toys.task('day'), [])
        sample, = toys.predict(model, 'day')
        assert ('seg_logits' in sample) == keep_logits
        labels.append(sample.pred_sem_seg.data)
    assert torch.equal(*labels)
    assert 'seg_logits' not in toys.predict(plain(), 'day')[0]


def test_unknown_type_to_predict_in_is_refused(plain):
    with pytest.raises(
            ValueError,
            match=r"model.predict_dtype must be one of \('float32', "
            r"'bfloat16', 'float16'\), got 'bf16'"):
        plain(predict_dtype='bf16')


def computed_in(model) -> list[torch.dtype]:
    """Types of the classifier's outputs from here on."""
    seen: list[torch.dtype] = []
    model.decode_head.conv_seg.register_forward_hook(
        lambda _, __, out: seen.append(out.dtype))
    return seen


@pytest.mark.parametrize('name', ['float32', 'bfloat16', 'float16'])
def test_prediction_is_computed_in_the_type_asked_for(plain, toys, name):
    torch.manual_seed(3)
    model = plain(predict_dtype=name, keep_logits=True)
    toys.learn(model, 'night')
    seen = computed_in(model)
    low, = toys.predict(model, 'night')
    assert seen == [getattr(torch, name)]
    assert low.seg_logits.data.dtype == torch.float32
    model.predict_dtype = torch.float32
    full, = toys.predict(model, 'night')
    wanted = full.seg_logits.data
    error = (low.seg_logits.data - wanted).abs().max() / wanted.abs().max()
    assert error < 0.02 and (error > 0) == (name != 'float32')
    same = low.pred_sem_seg.data == full.pred_sem_seg.data
    assert same.float().mean() > 0.98


def test_autocast_of_a_test_loop_is_honoured(plain, toys):
    model = plain()
    toys.learn(model, 'day')
    seen = computed_in(model)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        toys.predict(model, 'day')
    toys.predict(model, 'day')
    assert seen == [torch.bfloat16, torch.float32]


def test_training_is_not_computed_in_the_type_to_predict_in(plain, toys):
    model = plain(predict_dtype='bfloat16')
    model.begin_task(toys.task('day'), [])
    seen = computed_in(model)
    toys.train(model, 'day', 1)
    assert seen == [torch.float32]


def test_method_without_experts_forces_none(plain):
    model = plain()
    assert model.expert_names == () and model.expert_costs('folder') == []
    with pytest.raises(ValueError, match="PlainSegmentor has no expert 'day'"):
        with model.forced('day'):
            pass


def test_class_weights_that_do_not_fit_a_task_are_refused(plain, toys):
    loss = dict(type='CrossEntropyLoss', class_weight=[1.0, 2.0])
    model = plain(
        decode_head=dict(
            toys.config['decode_head'], num_classes=2, loss_decode=loss))
    model.begin_task(toys.task('day'), [])
    with pytest.raises(ValueError, match='the task has 3 classes'):
        model.begin_task(toys.task('night'), [])
    with pytest.raises(ValueError, match='the task has 3 classes'):
        model.check_stream([toys.task('day'), toys.task('night')])
