# SPDX-License-Identifier: Apache-2.0
"""Experts of sensors: what is computed, learned, predicted and kept."""
from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
import torch
from mmengine.optim import OptimWrapper

from mmseg_mile.methods.mle_sam.sensor_expert_segmentor import random_subsets
from .conftest import SENSORS, TASK, batch_of

ALL = (True, True, True)
RAGGED = [ALL, (False, True, False), (True, False, True)]
SLIDE = dict(mode='slide', crop_size=(16, 16), stride=(8, 8))


def logits_of(model, batch):
    """The logits that each image of a batch gets."""
    model.keep_logits = True
    with torch.no_grad():
        outputs = model.test_step(copy.deepcopy(batch))
    return [output.seg_logits.data for output in outputs]


def subsets_of(count):
    """All but the empty one, (2^M - 1, M)."""
    return torch.tensor(list(product((False, True), repeat=count))[1:])


@pytest.mark.parametrize('mode, test_cfg', [
    ('scene', dict(mode='whole')), ('level', dict(mode='whole')),
    ('pixel', SLIDE)])  # yapf: disable
def test_content_of_absent_sensors_changes_no_bit(learned, mode, test_cfg):
    model = learned(router__mode=mode, test_cfg=test_cfg)
    batch = batch_of(RAGGED)
    before = logits_of(model, batch)
    batch['inputs'][1][:3] = 255
    batch['inputs'][1][4:] = 7
    batch['inputs'][2][3] = 99
    for old, new in zip(before, logits_of(model, batch)):
        assert torch.equal(old, new)
    # and that of a present one does
    batch['inputs'][1][3] = 99
    assert not torch.equal(before[1], logits_of(model, batch)[1])


def test_only_present_sensors_are_computed(learned):
    model = learned()
    rows = []
    model.backbone.backbone.register_forward_pre_hook(
        lambda module, args: rows.append(len(args[0])))
    logits_of(model, batch_of(RAGGED))
    assert sum(rows) == 3 + 1 + 2


def test_images_of_a_batch_do_not_depend_on_each_other(learned):
    model = learned()
    batch = batch_of(RAGGED)
    together = logits_of(model, batch)
    for index, expected in enumerate(together):
        alone = {key: [value[index]] for key, value in batch.items()}
        torch.testing.assert_close(logits_of(model, alone)[0], expected)


def test_every_sensor_has_an_expert_of_its_own(learned):
    model = learned()
    batch = batch_of([(False, True, False), (False, False, True)])
    grey = batch['inputs'][0][3]
    batch['inputs'][0][3] = batch['inputs'][1][4] = grey
    model.data_preprocessor.sensor_mean[:] = 100
    thermal, depth = logits_of(model, batch)
    assert not torch.allclose(thermal, depth)


def test_subsets_of_one_pass_are_those_of_marked_samples(learned):
    model = learned(test_cfg=SLIDE)
    model.keep_logits = True
    rows = []
    model.backbone.backbone.register_forward_pre_hook(
        lambda module, args: rows.append(len(args[0])))
    data = model.data_preprocessor(batch_of([ALL, ALL]), False)
    subsets = subsets_of(3)
    found = model.predict_subsets(data['inputs'], data['data_samples'],
                                  subsets)
    # three sensors of two images in two windows
    assert sum(rows) == 3 * 2 * 2
    for subset, outputs in zip(subsets.tolist(), found):
        expected = logits_of(model, batch_of([subset, subset]))
        for output, logits in zip(outputs, expected):
            torch.testing.assert_close(output.seg_logits.data, logits)


def test_image_without_any_sensor_of_a_subset_gets_no_prediction(learned):
    model = learned()
    data = model.data_preprocessor(batch_of([(True, False, False)]), False)
    only = torch.eye(3, dtype=torch.bool)
    rgb, thermal, _ = model.predict_subsets(data['inputs'],
                                            data['data_samples'], only)
    assert (rgb[0].pred_sem_seg.data < 3).all()
    assert (thermal[0].pred_sem_seg.data == 255).all()


def test_versions_of_a_sensor_pass_its_expert(learned):
    model = learned()
    model.keep_logits = True
    data, other = (
        model.data_preprocessor(batch_of([ALL], seed), False)
        for seed in (0, 1))
    both = torch.cat([data['inputs'], other['inputs']], 1)
    # the first and third sensor of the second version, the second's of the
    # first
    choice = torch.tensor([[False, True, False, True, False, True]])
    mixed = other['inputs'].clone()
    mixed[:, 3:6] = data['inputs'][:, 3:6]
    found = model.predict_subsets(both, data['data_samples'], choice)
    expected = model.predict_subsets(mixed, data['data_samples'],
                                     torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(found[0][0].seg_logits.data,
                               expected[0][0].seg_logits.data)


def test_prediction_tells_the_weights_of_the_sensors(learned):
    model = learned()
    outputs = model.test_step(batch_of(RAGGED))
    weights = [output.sensor_weights for output in outputs]
    assert tuple(weights[0]) == SENSORS
    for row in weights:
        assert sum(row.values()) == pytest.approx(1)
    assert weights[1] == dict(rgb=0, thermal=1, depth=0)
    stats = model.routing_stats()
    assert stats['thermal'] == pytest.approx(
        sum(row['thermal'] for row in weights) / 3)
    assert model.routing_stats() == {}


# -- learning ------------------------------------------------------------


def train(model, batches, lr=0.1):
    """A step of plain SGD for each batch."""
    model.train()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=lr))
    return [model.train_step(batch, wrapper) for batch in batches]


def test_step_trains_experts_of_present_sensors_over_a_frozen_base(build):
    model = build()
    base = copy.deepcopy(model.backbone.base_state())
    model.begin_task(TASK, [])
    before = {n: model.backbone.experts[n].clone()
              for n in model.backbone.experts.names}  # yapf: disable
    train(model, [batch_of([(True, True, False)] * 2, seed)
                  for seed in range(2)])  # yapf: disable
    model.end_task(TASK, [])
    for key, value in model.backbone.base_state().items():
        assert torch.equal(value, base[key])
    for sensor in SENSORS:
        old, new = before[f'street.{sensor}'], model.backbone.experts[
            f'street.{sensor}']
        # A moves once B, which starts at zero, has
        moved = [
            not torch.equal(old.lora[k], new.lora[k]) for k in old.lora
            if 'lora_B' in k
        ]
        norm = [
            not torch.equal(old.norm[k], new.norm[k]) for k in old.norm
            if 'running' in k
        ]
        if sensor == 'depth':
            assert not any(moved + norm)
        else:
            assert all(moved) and all(norm)


def test_gradients_are_those_of_the_merged_experts(learned):
    """What trains computes what is predicted: two ways, one function."""
    model = learned()
    model.backbone.train_experts(model._experts)
    data = model.data_preprocessor(batch_of(RAGGED), False)
    present = model.data_preprocessor.presence(data['data_samples'])
    merged = model.sensor_features(data['inputs'], present)
    # not train(), in which batch norm would take the batch's statistics
    model.training = True
    trained = model.sensor_features(data['inputs'], present)
    for levels in zip(merged, trained):
        for one, other in zip(*levels):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
            assert other.requires_grad and not one.requires_grad


def test_statistics_of_two_sensors_are_not_mixed(build):
    model = build()
    model.begin_task(TASK, [])
    batch = batch_of([ALL] * 2)
    for stack in batch['inputs']:
        stack[3] = 100 + stack[3] // 100
    train(model, [batch])
    model.end_task(TASK, [])
    variances = {
        sensor:
        model.backbone.experts[f'street.{sensor}'].norm['stem.1.running_var'].
        mean()
        for sensor in SENSORS
    }
    # near-constant images against noise
    assert variances['thermal'] < 0.99 * variances['depth']


def test_subset_training_decodes_twice_and_encodes_once(build):
    losses = {}
    for subset_training in (False, True):
        model = build(subset_training=subset_training)
        torch.manual_seed(0)
        model.begin_task(TASK, [])
        rows, decoded = [], []
        model.backbone.backbone.stem.register_forward_pre_hook(
            lambda module, args, rows=rows: rows.append(len(args[0])))
        model.decode_head.convs.register_forward_pre_hook(
            lambda module, args, decoded=decoded: decoded.append(len(args[0])))
        losses[subset_training], = train(model, [batch_of([ALL] * 2)])
        assert sum(rows) == 6
        assert decoded == [4 if subset_training else 2]
    assert set(losses[True]) == set(losses[False])


def test_random_subsets_are_proper_and_equally_likely():
    present = torch.tensor([[True, True, False, True]] * 600)
    drawn = random_subsets(present)
    assert not drawn[:, 2].any()
    counts = Counter(map(tuple, drawn.tolist()))
    assert len(counts) == 6
    assert min(counts.values()) > 60


def test_random_subset_of_one_sensor_is_itself():
    present = torch.tensor([[False, True]])
    assert random_subsets(present).tolist() == [[False, True]]


def test_optimizer_sees_every_trained_value_once(build):
    model = build()
    model.begin_task(TASK, [])
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    lora = [n for n in names if 'lora_' in n]
    assert len(lora) == 3 * len(model.backbone.targets) * 2
    model.end_task(TASK, [])
    assert not [n for n, _ in model.named_parameters() if 'lora_' in n]


# -- keeping -------------------------------------------------------------


def test_kept_model_predicts_alike(learned, build, tmp_path):
    model = learned()
    model.save_task(TASK, tmp_path, {})
    again = build()
    again.load_tasks([TASK], tmp_path)
    again.eval()
    batch = batch_of(RAGGED)
    for old, new in zip(logits_of(model, batch), logits_of(again, batch)):
        assert torch.equal(old, new)
    # a folder that PEFT reads for each sensor
    for sensor in SENSORS:
        assert (tmp_path /
                f'street.{sensor}/adapter_model.safetensors').exists()
    assert set(again.kept_state()) == set(model.kept_state())


def test_router_of_another_kind_is_refused(learned, build, tmp_path):
    learned().save_task(TASK, tmp_path, {})
    other = build(router__mode='level')
    with pytest.raises(ValueError, match="router of expert 'street.rgb'"):
        other.load_tasks([TASK], tmp_path)


# -- refusals ------------------------------------------------------------


@pytest.mark.parametrize('changes, message', [
    (dict(backbone=dict(type='ResNetV1c', depth=18)), 'LoRAExpertBackbone'),
    (dict(backbone__base_training='first_task'), "base_training='none'"),
    (dict(data_preprocessor=dict(type='SegDataPreProcessor', size_divisor=1)),
     'SensorPreProcessor'),
])  # yapf: disable
def test_wrong_parts_are_refused(build, changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


@pytest.mark.parametrize('tasks, message', [
    ([TASK, replace(TASK, name='field')], 'give it one task'),
    ([replace(TASK, sensors=())], 'give the task `sensors'),
    ([replace(TASK, sensors=SENSORS[::-1])], 'in this order'),
])  # yapf: disable
def test_streams_it_cannot_learn_are_refused(build, tasks, message):
    with pytest.raises(ValueError, match=message):
        build().check_stream(tasks)


def test_recomputed_blocks_are_refused(build):
    model = build(backbone__with_cp=True)
    with pytest.raises(ValueError, match='with_cp=True'):
        model.begin_task(TASK, [])


def test_prediction_before_any_task_is_refused(build):
    with pytest.raises(ValueError, match='no task yet'):
        build().eval().test_step(batch_of([ALL]))
