# SPDX-License-Identifier: Apache-2.0
"""MDIL: what domains share moves, what a domain owns does not."""
from __future__ import annotations

import copy
import json
from functools import partial

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData
from safetensors.torch import load_file
from tiny import AUXILIARY_HEAD, TINY_MODEL

from mmseg.structures import SegDataSample
from mmseg_mile.methods.baselines.mdil_segmentor import (MDILSegmentor,
                                                         owned_by_domains)
from mmseg_mile.structures import Task

DAY = Task('day', ('sky', 'road'), ((1, 1, 1), (2, 2, 2)), {}, {})
NIGHT = Task('night', ('lamp', 'road', 'car'),
             ((3, 3, 3), (2, 2, 2), (4, 4, 4)), {}, {})
DUSK = Task('dusk', ('road', 'sky'), ((2, 2, 2), (1, 1, 1)), {}, {})
OPTIM = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1.0))
SHARED, OWNED = 'layer1.0.conv1.weight', 'layer1.0.conv1.adapter.weight'


def model_config(**changes):
    model = copy.deepcopy(TINY_MODEL)
    for key in ('embedder', 'gate', 'type'):
        del model[key]
    model['backbone'] = model['backbone']['backbone']
    return ConfigDict(dict(model, keep_logits=True, **changes))


def build(**changes):
    model = MDILSegmentor(**model_config(**changes))
    model.init_weights()
    return model


def learn_task(model, task):
    """Stand-in for training: every parameter and statistic moves."""
    model.begin_task(task, [])
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith('running_var'):
                value.add_(torch.rand_like(value) * 0.1)
            elif value.is_floating_point():
                value.add_(torch.randn_like(value) * 0.1)
    model.end_task(task, [])


@pytest.fixture
def model():
    return build()


@pytest.fixture
def learned(model):
    for task in (DAY, NIGHT):
        learn_task(model, task)
    return model.eval()


def samples_of(*tasks):
    size = dict(img_shape=(32, 32), ori_shape=(32, 32), pad_shape=(32, 32))
    return [
        SegDataSample(
            gt_sem_seg=PixelData(data=torch.randint(0, 2, (1, 32, 32))),
            metainfo=dict(size, **(dict(task=task) if task else {})))
        for task in tasks
    ]


def predict(model, images, *tasks):
    with torch.no_grad():
        return model.predict(images, samples_of(*tasks))


def test_domain_begins_as_the_one_before(model):
    learn_task(model, DAY)
    before = copy.deepcopy(model.state_dict())
    model.begin_task(DUSK, [])
    for key, value in model.state_dict().items():
        if 'conv_seg' in key:
            # the same classes in the other order
            value = value.flip(0)
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    assert model.classes == ('road', 'sky')


def test_earlier_domain_keeps_all_but_what_is_shared(model):
    learn_task(model, DAY)
    before = copy.deepcopy(model.state_dict())
    learn_task(model, NIGHT)
    model.take('day')
    moved = {
        key
        for key, value in model.state_dict().items()
        if not torch.equal(value, before[key])
    }
    assert f'backbone.{SHARED}' in moved
    assert moved and all(
        key.startswith('backbone.') and 'bn' not in key
        and 'adapter' not in key for key in moved)


def test_each_image_is_predicted_by_the_layers_of_its_domain(learned):
    images = torch.randn(3, 3, 32, 32)
    mixed = predict(learned, images, 'night', 'day', 'night')
    assert [s.expert for s in mixed] == ['night', 'day', 'night']
    assert [s.classes
            for s in mixed] == [NIGHT.classes, DAY.classes, NIGHT.classes]
    for index, task in enumerate(('night', 'day', 'night')):
        alone = predict(learned, images[index:index + 1], task)[0]
        torch.testing.assert_close(mixed[index].seg_logits.data,
                                   alone.seg_logits.data)


@pytest.mark.parametrize('task', ['fog', None])
def test_unknown_task_goes_to_the_newest_domain(learned, task):
    assert predict(learned, torch.randn(1, 3, 32, 32),
                   task)[0].expert == ('night')


def test_forced_domain_predicts_all_images(learned):
    images = torch.randn(2, 3, 32, 32)
    with learned.forced('day'):
        forced = predict(learned, images, 'night', 'fog')
    assert [s.expert for s in forced] == ['day', 'day']
    assert predict(learned, images[:1], 'night')[0].expert == 'night'


def test_unknown_domain_cannot_be_forced(learned):
    with pytest.raises(ValueError, match="'fog' is no learned task; learned"):
        with learned.forced('fog'):
            pass


def test_nothing_is_predicted_before_a_task_was_learned(model):
    with pytest.raises(ValueError, match='has learned no task yet'):
        predict(model, torch.randn(1, 3, 32, 32), 'day')


# -- distillation -------------------------------------------------------------


def training_loss(model):
    images = torch.randn(2, 3, 32, 32)
    return model.train().loss(images, samples_of('dusk', 'dusk'))


def disturb(model):
    weight = model.backbone.get_parameter('stem.0.weight')
    weight.data.add_(torch.randn_like(weight))


def test_first_domain_has_nothing_to_distil(model):
    model.begin_task(DAY, [])
    assert 'loss_mdil' not in training_loss(model)


def test_answers_have_not_moved_when_a_task_begins(learned):
    learned.begin_task(DUSK, [])
    assert training_loss(learned)['loss_mdil'].item() == 0


def test_answers_of_all_earlier_domains_are_held(learned):
    learned.begin_task(DUSK, [])
    learned.mdil_weight = 1.0
    disturb(learned)
    images = torch.randn(2, 3, 32, 32)
    both = learned.train().loss(images, samples_of(None, None))['loss_mdil']
    single = []
    domains = dict(learned._domains)
    for name in ('day', 'night'):
        learned._domains = {name: domains[name]}
        single.append(learned.loss(images, samples_of(None, None)))
    assert all(s['loss_mdil'] > 0 for s in single)
    torch.testing.assert_close(both, sum(s['loss_mdil'] for s in single))


def test_divergence_moves_what_is_shared_and_nothing_else(learned):
    learned.begin_task(DUSK, [])
    disturb(learned)
    training_loss(learned)['loss_mdil'].backward()
    with_gradient = {
        name
        for name, p in learned.named_parameters() if p.grad is not None
    }
    assert with_gradient == {
        f'backbone.{name}'
        for name, _ in learned.backbone.named_parameters()
        if 'bn' not in name and 'adapter' not in name and not name.startswith(
            ('stem.1', 'stem.4', 'stem.7')) and 'downsample.1' not in name
    }


def test_divergence_looks_at_no_statistic_of_a_batch(learned):
    learned.begin_task(DUSK, [])
    training_loss(learned)
    for domain in learned._domains.values():
        assert domain.state['backbone.layer1.0.bn1.num_batches_tracked'] == 0
    counts = [
        b for n, b in learned.named_buffers() if n.endswith('batches_tracked')
    ]
    # one forward in training mode, whatever the other domains answered
    assert all(count == 1 for count in counts)


def test_other_losses_have_a_gradient_for_all_layers(learned):
    learned.begin_task(DUSK, [])
    training_loss(learned)['decode.loss_ce'].backward()
    assert all(p.grad is not None for p in learned.parameters())


# -- rates --------------------------------------------------------------------


def rates(model):
    config = model.optim_wrapper_config(copy.deepcopy(OPTIM))
    optimizer = build_optim_wrapper(model, config).optimizer
    names = {id(p): n for n, p in model.named_parameters()}
    return {
        names[id(p)]: group['lr']
        for group in optimizer.param_groups
        for p in group['params']
    }


def test_first_domain_trains_everything_at_one_rate(model):
    model.begin_task(DAY, [])
    assert set(rates(model).values()) == {1.0}


def test_what_is_shared_then_has_a_hundredth_of_the_rate(learned):
    learned.begin_task(DUSK, [])
    found = rates(learned)
    assert found[f'backbone.{SHARED}'] == found[
        'backbone.stem.0.weight'] == 0.01
    for name in (f'backbone.{OWNED}', 'backbone.layer1.0.bn1.weight',
                 'backbone.stem.1.weight', 'decode_head.conv_seg.weight'):
        assert found[name] == 1.0


# -- keeping ------------------------------------------------------------------


def test_saved_domains_predict_the_same(model, tmp_path):
    for task in (DAY, NIGHT):
        learn_task(model, task)
        model.save_task(task, tmp_path, dict(seed=0))
    for together in (True, False):
        other = build()
        for tasks in ([[DAY, NIGHT]] if together else [[DAY], [NIGHT]]):
            other.load_tasks(tasks, tmp_path)
        assert other.expert_names == ('day', 'night')
        image = torch.randn(1, 3, 32, 32)
        for task in ('day', 'night'):
            mine, theirs = (
                predict(m.eval(), image, task)[0] for m in (model, other))
            torch.testing.assert_close(
                mine.seg_logits.data, theirs.seg_logits.data, rtol=0, atol=0)
            assert mine.palette == theirs.palette


def test_shared_values_are_kept_once_and_others_per_domain(model, tmp_path):
    learn_task(model, DAY)
    one = model.kept_cost([])
    learn_task(model, DUSK)
    two = model.kept_cost([])
    whole = sum(v.numel() for v in model.state_dict().values())
    shared = sum(p.numel() for n, p in model.backbone.named_parameters()
                 if n not in owned_by_domains(model.backbone))
    assert one['params'] == whole
    assert two['params'] - one['params'] == whole - shared
    assert one['bytes'] < two['bytes'] < 2 * one['bytes']


# -- refused ------------------------------------------------------------------


@pytest.mark.parametrize('changes, message', [
    (dict(mdil_weight=-1), 'model.mdil_weight must be >= 0, got -1'),
    (dict(shared_lr_mult=-1), 'model.shared_lr_mult must be >= 0, got -1'),
    (dict(backbone=TINY_MODEL['backbone']), 'is a LoRAExpertBackbone'),
    (dict(
        backbone=dict(
            type='ResNetV1c', depth=18, norm_cfg=dict(
                type='GN', num_groups=4))), 'has no batch norm'),
])
def test_config_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        MDILSegmentor(**model_config(**changes))


def test_head_with_a_loss_of_its_own_is_refused():
    head = dict(
        type='EncHead',
        in_channels=[8, 16, 32, 64],
        in_index=[0, 1, 2, 3],
        channels=8,
        num_codes=2,
        num_classes=2)
    with pytest.raises(ValueError, match="'EncHead' computes its loss"):
        MDILSegmentor(**model_config(decode_head=head))


# -- on the tiny stream -------------------------------------------------------


class StopAfter(Hook):
    """Ends the process after the first iteration of a task."""

    def __init__(self, task):
        self.stop, self.task = task, ''

    def before_stream_task(self, runner, tasks, index):
        self.task = tasks[index].name

    def after_train_iter(self, runner, **kwargs):
        if self.task == self.stop:
            raise KeyboardInterrupt


@pytest.fixture(scope='module')
def config(short_stream):
    return partial(
        short_stream,
        model_config(
            type='MDILSegmentor',
            channels_last=True,
            auxiliary_head=AUXILIARY_HEAD))


@pytest.fixture(scope='module')
def run(learn, config, tmp_path_factory):
    return learn(config(tmp_path_factory.mktemp('mdil') / 'run'))


def results_of(run):
    return json.loads((run.work_dir / 'results.json').read_text())


@pytest.mark.integration
def test_true_task_is_given_and_so_routing_costs_nothing(run):
    results = results_of(run)
    assert results['method'] == 'MDIL'
    assert results['scores']['oracle_gap'] == 0
    assert run.diary.predicted == [9, 9, 9]


@pytest.mark.integration
def test_domains_can_be_forced_on_each_other(run):
    cross = json.loads((run.work_dir / 'cross_expert_miou.json').read_text())
    assert cross is not None
    assert results_of(run)['scores']['mismatch_drop'] is not None


@pytest.mark.integration
def test_every_domain_costs_less_than_a_network(run):
    kept = results_of(run)['cost']['kept_params']
    assert kept[0] < kept[1] < kept[2] < 3 * kept[0]


@pytest.mark.integration
@pytest.mark.parametrize('task', ['night', 'infrared'])
def test_resumed_stream_equals_the_uninterrupted_one(run, config,
                                                     stop_and_resume, tmp_path,
                                                     task):
    resumed = stop_and_resume(config, tmp_path / 'run', StopAfter(task))
    assert resumed.diary.learned[0] == task
    mine, theirs = (
        load_file(folder / 'library' / 'infrared' / 'model.safetensors')
        for folder in (run.work_dir, resumed.work_dir))
    for key, value in mine.items():
        assert torch.equal(value, theirs[key]), key
    assert results_of(run)['miou'] == results_of(resumed)['miou']
