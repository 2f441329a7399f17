# SPDX-License-Identifier: Apache-2.0
"""Adapters go into a backbone and come out without a trace."""
from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from mmseg_mile.adapters.adapter import AdapterStack
from mmseg_mile.adapters.fast_layers import FrozenConv2d, RecomputedGELU
from mmseg_mile.adapters.injection import LoRAInjection

LORA = dict(r=2, lora_alpha=4, lora_dropout=0.0, use_rslora=False)


class Net(nn.Module):
    """A dilated convolution, a norm layer and a nested linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            3, 8, 3, padding=2, dilation=2, padding_mode='reflect')
        self.norm = nn.BatchNorm2d(8)
        self.block = nn.ModuleDict(dict(fc=nn.Linear(8, 8)))

    def forward(self, x: Tensor) -> Tensor:
        """Give (B, 8) features."""
        return self.block['fc'](self.norm(self.conv(x)).mean((2, 3)))


X = torch.linspace(-2, 2, 2 * 3 * 8 * 8).view(2, 3, 8, 8).sin()


@pytest.fixture
def net() -> Net:
    """A frozen network in eval mode."""
    return Net().eval().requires_grad_(False)


def inject(net: Net,
           train_norm: bool = False,
           **changes: object) -> LoRAInjection:
    """Adapt both layers, away from zero."""
    injection = LoRAInjection(net, ['conv', 'block.fc'], {
        **LORA,
        **changes
    }, train_norm)
    for name in ('conv', 'block.fc'):
        nn.init.normal_(net.get_submodule(name).lora_B)
    return injection


def test_layers_are_exchanged_and_given_back_as_they_were(net):
    before, base = dict(net.named_modules()), net(X)
    injection = inject(net, train_norm=True)
    trained = net(X)
    assert injection.attached and not torch.equal(trained, base)
    injection.detach()
    assert dict(net.named_modules()) == before and not injection.attached
    assert torch.equal(net(X), base)
    injection.attach()
    assert torch.equal(net(X), trained)


@pytest.mark.parametrize('train_norm', [True, False])
def test_only_adapter_and_owned_norms_train(net, train_norm):
    injection = inject(net, train_norm)
    # a backbone that freezes stages whenever it is put into training mode
    net.requires_grad_(False)
    injection.enable_gradients()
    trainable = {n for n, p in net.named_parameters() if p.requires_grad}
    norms = {'norm.weight', 'norm.bias'} if train_norm else set()
    assert trainable == norms | {
        'conv.lora_A', 'conv.lora_B', 'block.fc.lora_A', 'block.fc.lora_B'
    }  # yapf: disable


def test_adapter_is_a_copy_under_the_names_of_the_backbone(net):
    adapter = inject(net, train_norm=True).adapter()
    assert set(adapter.lora) == {
        'conv.lora_A.weight', 'conv.lora_B.weight',
        'block.fc.lora_A.weight', 'block.fc.lora_B.weight'
    }  # yapf: disable
    assert set(adapter.norm) == {
        'norm.weight', 'norm.bias', 'norm.running_mean', 'norm.running_var',
        'norm.num_batches_tracked'
    }
    net.conv.lora_A.data.zero_()
    net.norm.weight.data.zero_()
    assert adapter.lora['conv.lora_A.weight'].any()
    assert adapter.norm['norm.weight'].all()


@pytest.mark.parametrize('affine', [True, False])
def test_values_are_loaded_bit_for_bit(net, affine):
    net.norm = nn.BatchNorm2d(8, affine=affine).eval()
    other = inject(copy.deepcopy(net), train_norm=True)
    other.owned_norms()[0].running_mean.fill_(3)
    injection = inject(net, train_norm=True)
    injection.load(other.adapter())
    mine, theirs = injection.adapter(), other.adapter()
    for part in ('lora', 'norm'):
        values = getattr(theirs, part)
        assert all(torch.equal(getattr(mine, part)[k], values[k])
                   for k in values)  # yapf: disable


def test_expert_without_norms_trains_copies_of_the_base_s(net):
    injection = inject(net, train_norm=True)
    adapter = injection.adapter()
    adapter.norm = {}
    injection.load(adapter)
    assert torch.equal(injection.adapter().norm['norm.weight'],
                       net.norm.weight)


@pytest.mark.parametrize('use_rslora', [False, True])
def test_trained_adapter_computes_what_merged_weights_do(net, use_rslora):
    injection = inject(net, use_rslora=use_rslora)
    live = net(X)
    injection.detach()
    stack = AdapterStack([injection.adapter()])
    merged = stack.merge(dict(net.named_parameters()), [1.0])
    torch.testing.assert_close(
        torch.func.functional_call(net, merged, (X, )),
        live,
        rtol=1e-5,
        atol=1e-5)


def test_peft_decides_how_an_adapter_starts(net):
    torch.manual_seed(7)
    injection = LoRAInjection(net, ['block.fc'], LORA, train_norm=False)
    injection.detach()
    torch.manual_seed(7)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=['block.fc'])
    theirs = inject_adapter_in_model(config, net).block['fc']
    down, up = injection.adapter().factors('block.fc')
    assert torch.equal(down, theirs.lora_A['default'].weight)
    assert not up.any()


def test_convolution_without_an_adapter_is_frozen_meanwhile(net):
    original = net.conv
    injection = LoRAInjection(net, ['block.fc'], LORA, train_norm=False)
    assert net.conv is original  # its padding is not zeros
    injection.detach()
    net.conv = original = nn.Conv2d(3, 8, 3).requires_grad_(False)
    injection = LoRAInjection(net, ['block.fc'], LORA, train_norm=False)
    assert isinstance(net.conv, FrozenConv2d)
    assert net.conv.weight is original.weight
    injection.detach()
    assert net.conv is original


def test_activation_is_put_back_under_each_of_its_names():
    net = nn.Module()
    net.act = original = nn.GELU()
    net.layers = nn.Sequential(nn.Linear(4, 4), net.act, nn.Linear(4, 4))
    net.requires_grad_(False)
    injection = LoRAInjection(net, ['layers.2'], LORA, train_norm=False)
    assert isinstance(net.act, RecomputedGELU)
    assert isinstance(net.layers[1], RecomputedGELU)
    injection.detach()
    assert net.act is original and net.layers[1] is original


@pytest.mark.parametrize('target, other', [('fc', 'block.fc'), ('a+', 'aa')])
def test_target_is_a_name_and_no_pattern(target, other):
    net = nn.Module()
    net.block = nn.Module()
    for name in (target, other):
        parent, _, child = name.rpartition('.')
        net.get_submodule(parent).add_module(child, nn.Linear(4, 4))
    net.requires_grad_(False)
    LoRAInjection(net, [target], LORA, train_norm=False)
    assert isinstance(net.get_submodule(other), nn.Linear)
    assert not isinstance(net.get_submodule(target), nn.Linear)
