# SPDX-License-Identifier: Apache-2.0
"""Learning without forgetting: its loss by hand, and on a small network."""
from __future__ import annotations

import copy
import math

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from tiny import DAY, DUSK, NIGHT, batch_of, learn_task, one_model, train
from torch import nn

from mmseg_mile.methods.baselines.lwf_segmentor import (distillation_loss,
                                                        scale_lr)

# -- distillation ------------------------------------------------------------


def pixel(*values):
    return torch.tensor(values).log().view(1, -1, 1, 1)


HALF, QUARTER = pixel(0.5, 0.5), pixel(0.25, 0.75)
# KL((1/2, 1/2) || (1/4, 3/4)) = 1/2 log 2 + 1/2 log 2/3
APART = math.log(4 / 3) / 2


@pytest.mark.parametrize(
    'logits, wanted, temperature, expected',
    [
        (QUARTER, HALF, 1.0, APART),
        # at T = 2, softmax(log p / 2) is p^(1/2) / sum p^(1/2): (1/16, 9/16)
        # becomes (1/4, 3/4), and T^2 restores the size
        (pixel(1 / 16, 9 / 16), HALF, 2.0, 4 * APART),
        # the same distribution, other logits
        (QUARTER + 7.0, QUARTER, 2.0, 0),
        # pixels are averaged
        (torch.cat(
            (HALF, QUARTER), 3), HALF.expand(1, 2, 1, 2), 1.0, APART / 2),
        # a new class is not asked for
        (torch.cat((QUARTER, torch.full(
            (1, 1, 1, 1), 9.0)), 1), HALF, 1.0, APART),
    ])
def test_divergence_of_given_distributions(logits, wanted, temperature,
                                           expected):
    loss = distillation_loss(logits, wanted, temperature)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_gradient_is_the_difference_of_the_distributions():
    logits = QUARTER.clone().requires_grad_()
    distillation_loss(logits, HALF, 1.0).backward()
    torch.testing.assert_close(logits.grad.flatten(),
                               torch.tensor([-0.25, 0.25]))


# -- on a network ------------------------------------------------------------


@pytest.fixture
def learned():
    model = one_model('LwFSegmentor')
    learn_task(model, DAY)
    return model


def losses_of(model, task):
    return model.loss(**model.data_preprocessor(batch_of(task, 9), True))


def answers(model, task):
    images = model.data_preprocessor(batch_of(task, 9), False)['inputs']
    with torch.no_grad():
        return model.eval()._forward(images)


def test_term_is_the_weighted_divergence_from_the_answers_before(learned):
    first = one_model('LwFSegmentor')
    first.begin_task(DAY, [])
    assert 'loss_lwf' not in losses_of(first, DAY)
    learned.lwf_weight, learned.temperature = 3.0, 4.0
    wanted = answers(learned, NIGHT)
    learned.begin_task(NIGHT, [])
    losses = losses_of(learned.eval(), NIGHT)
    assert losses['loss_lwf'].item() == pytest.approx(0, abs=1e-6)
    train(learned, NIGHT)
    losses = losses_of(learned.eval(), NIGHT)
    expected = distillation_loss(answers(learned, NIGHT), wanted, 4.0)
    assert expected > 0
    torch.testing.assert_close(losses['loss_lwf'], 3.0 * expected)
    # the other losses are those of fine-tuning
    plain = copy.deepcopy(learned)
    plain._teacher, plain._wanted = (), None
    del losses['loss_lwf']
    assert losses == losses_of(plain, NIGHT)


def test_network_from_before_is_no_part_of_the_model(learned):
    known = set(learned.state_dict())
    learned.begin_task(DUSK, [])
    assert set(learned.state_dict()) == known
    teacher, = learned._teacher
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in learned.parameters())
    plain = one_model('FineTuneSegmentor')
    learn_task(plain, DAY)
    assert learned.kept_cost([]) == plain.kept_cost([])
    learned.end_task(DUSK, [])
    assert not learned._teacher


def test_defended_answers_move_less_than_undefended_ones(learned):
    before, moved = answers(learned, NIGHT), []
    learned.begin_task(NIGHT, [])
    for weight in (0.0, 1.0, 10.0):
        model = copy.deepcopy(learned)
        model.lwf_weight = weight
        train(model, NIGHT, 8)
        moved.append(
            distillation_loss(answers(model, NIGHT), before, 1.0).item())
    assert moved[0] > moved[1] > moved[2]


# -- two learning rates ------------------------------------------------------


def wrapper_config(**paramwise):
    config = dict(
        type='OptimWrapper',
        optimizer=dict(type='SGD', lr=0.1, weight_decay=0.01))
    return dict(config, paramwise_cfg=paramwise) if paramwise else config


def settings(net, config):
    """Rate and decay of each parameter, as mmengine makes them."""
    known = {id(p): n for n, p in net.named_parameters()}
    return {
        known[id(p)]: (round(g['lr'], 6), g['weight_decay'])
        for g in build_optim_wrapper(net, config).param_groups
        # mmengine adds a group of its own for the schedulers
        for p in g['params'] if id(p) in known
    }


@pytest.mark.parametrize('keys, wanted', [
    ({}, dict(conv=(0.05, 0.01), norm=(0.05, 0.01), head=(0.1, 0.01))),
    ({'norm': dict(decay_mult=0.0), 'conv': dict(lr_mult=3.0),
      'head': dict(lr_mult=10.0)},
     dict(conv=(0.15, 0.01), norm=(0.05, 0.0), head=(1.0, 0.01))),
    # the longest key rules
    ({'backbone': dict(lr_mult=2.0), 'backbone.norm': dict(lr_mult=4.0)},
     dict(conv=(0.1, 0.01), norm=(0.2, 0.01), head=(0.1, 0.01))),
])  # yapf: disable
def test_rate_is_multiplied_and_custom_keys_hold(keys, wanted):
    net = nn.ModuleDict(
        dict(
            backbone=nn.ModuleDict(
                dict(conv=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4))),
            head=nn.Conv2d(4, 2, 1)))
    config = wrapper_config(custom_keys=keys)
    before = copy.deepcopy(config)
    names = [n for n, _ in net.named_parameters() if 'backbone' in n]
    found = settings(net, scale_lr(names, 0.5, config))
    assert config == before
    for name, value in found.items():
        assert value == wanted[name.split('.')[-2]]


@pytest.mark.parametrize('changes, name', [
    (dict(paramwise_cfg=dict(bias_lr_mult=2.0)), 'bias_lr_mult'),
    (dict(constructor='LearningRateDecayOptimizerConstructor'),
     'LearningRateDecay'),
])
def test_rates_that_would_be_lost_are_refused_before_the_first_task(
        changes, name):
    model = one_model('LwFSegmentor', shared_lr_mult=0.01)
    model.begin_task(DAY, [])
    with pytest.raises(ValueError, match=f'shared_lr_mult.*{name}'):
        model.optim_wrapper_config(dict(wrapper_config(), **changes))


@pytest.mark.parametrize('factor', [0.01, 1])
def test_backbone_is_slower_from_the_second_task_on(factor):
    model = one_model('LwFSegmentor', shared_lr_mult=factor)
    for task, rate in ((DAY, 0.1), (NIGHT, 0.1 * factor)):
        model.begin_task(task, [])
        config = model.optim_wrapper_config(wrapper_config())
        rates = {(name.split('.')[0], lr)
                 for name, (lr, _) in settings(model, config).items()}
        assert rates == {('backbone', rate), ('decode_head', 0.1)}
        model.end_task(task, [])


@pytest.mark.parametrize('changes, message', [
    (dict(lwf_weight=-1.0), 'model.lwf_weight must be >= 0, got -1.0'),
    (dict(shared_lr_mult=-1.0), 'model.shared_lr_mult must be >= 0, got -1.0'),
    (dict(temperature=0.0), 'model.temperature must be > 0 .*got 0.0'),
    (dict(decode_head=dict(
        type='DDRHead', in_channels=8, channels=8, num_classes=19,
        align_corners=False,
        loss_decode=[dict(type='CrossEntropyLoss', loss_name='loss_ce')] * 2)),
     "one map of logits.*'DDRHead'"),
    (dict(decode_head=dict(
        type='FCNHead', in_channels=8, channels=8, num_classes=2,
        out_channels=1, threshold=0.5, loss_decode=dict(
            type='CrossEntropyLoss', use_sigmoid=True))),
     'decode_head.out_channels=1 gives one output'),
])  # yapf: disable
def test_config_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        one_model('LwFSegmentor', **changes)
