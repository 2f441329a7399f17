# SPDX-License-Identifier: Apache-2.0
"""What the methods share."""
from __future__ import annotations

import pytest
import torch
from mmengine.config import ConfigDict
from torch import nn

from mmseg_mile.models import ContinualSegmentor


class PlainSegmentor(ContinualSegmentor):
    """A method that keeps nothing."""

    def begin_task(self, task, loader):
        """Speak the task's classes."""
        self.speak(self.new_head(task.num_classes), task.classes, task.palette)
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
        model = plain(channels_last=channels_last)
        model.begin_task(toys.task('day'), [])
        models.append(model)
    weights = [m.backbone.layer1[0].conv1.weight for m in models]
    assert weights[1].is_contiguous(memory_format=torch.channels_last)
    assert not weights[0].is_contiguous(memory_format=torch.channels_last)
    one, two = (toys.predict(m, 'day')[0].seg_logits.data for m in models)
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


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
