# SPDX-License-Identifier: Apache-2.0
"""Rates of some parameters, as mmengine makes them of a config."""
from __future__ import annotations

import copy

import pytest
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmseg_mile.methods.baselines.fine_tune_segmentor import with_rate_of


class Net(nn.Module):

    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleDict(
            dict(conv=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4)))
        self.head = nn.Conv2d(4, 2, 1)


def wrapper_config(**paramwise):
    config = dict(
        type='OptimWrapper',
        optimizer=dict(type='SGD', lr=0.1, weight_decay=0.01))
    return dict(config, paramwise_cfg=paramwise) if paramwise else config


def groups(config):
    """Rate and decay of each parameter."""
    net = Net()
    names = ['backbone.conv.weight', 'backbone.conv.bias',
             'backbone.norm.weight', 'backbone.norm.bias']  # yapf: disable
    wrapper = build_optim_wrapper(net, with_rate_of(names, 0.5, config))
    known = {id(p): n for n, p in net.named_parameters()}
    return {
        known[id(p)]: (pytest.approx(g['lr']), g['weight_decay'])
        for g in wrapper.param_groups
        # mmengine adds a group of its own for the schedulers
        for p in g['params'] if id(p) in known
    }


def test_rate_is_multiplied_for_the_named_parameters_only():
    found = groups(wrapper_config())
    assert found['backbone.conv.weight'] == (0.05, 0.01)
    assert found['backbone.norm.bias'] == (0.05, 0.01)
    assert found['head.weight'] == (0.1, 0.01)


def test_earlier_multipliers_and_decays_hold():
    found = groups(
        wrapper_config(
            custom_keys=dict(
                norm=dict(decay_mult=0.0),
                conv=dict(lr_mult=3.0),
                head=dict(lr_mult=10.0))))
    assert found['backbone.norm.weight'] == (0.05, 0.0)
    assert found['backbone.conv.bias'] == (0.15, 0.01)
    assert found['head.bias'] == (1.0, 0.01)


def test_longest_key_rules_as_it_did():
    found = groups(
        wrapper_config(custom_keys={
            'backbone': dict(lr_mult=2.0),
            'backbone.norm': dict(lr_mult=4.0)
        }))
    assert found['backbone.conv.weight'][0] == 0.1
    assert found['backbone.norm.weight'][0] == 0.2


def test_config_is_left_as_it_is():
    config = wrapper_config(custom_keys=dict(conv=dict(lr_mult=3.0)))
    before = copy.deepcopy(config)
    groups(config)
    assert config == before


@pytest.mark.parametrize('changes, name', [
    (dict(paramwise_cfg=dict(norm_decay_mult=0.0)), 'norm_decay_mult'),
    (dict(constructor='LearningRateDecayOptimizerConstructor'),
     'LearningRateDecay'),
])
def test_rates_that_would_be_lost_are_refused(changes, name):
    with pytest.raises(ValueError, match=f'shared_lr_mult.*{name}'):
        with_rate_of(['a'], 0.5, dict(wrapper_config(), **changes))
