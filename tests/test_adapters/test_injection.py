# SPDX-License-Identifier: Apache-2.0
"""Adapters go into a backbone and come out without a trace."""
from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from mmseg_mile.adapters.adapter import merge_adapters
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


def test_fresh_adapter_changes_nothing(net):
    x = torch.randn(2, 3, 8, 8)
    before = net(x)
    LoRAInjection(net, ['conv', 'block.fc'], LORA, train_norm=True)
    assert torch.equal(net(x), before)


def test_detach_gives_back_the_very_same_layers(net):
    before = dict(net.named_modules())
    injection = inject(net, train_norm=True)
    assert net.conv is not before['conv'] and net.norm is not before['norm']
    injection.detach()
    assert dict(net.named_modules()) == before
    assert not injection.attached


def test_attach_takes_up_the_trained_values(net):
    injection, x = inject(net), torch.randn(2, 3, 8, 8)
    trained = net(x)
    injection.detach()
    assert not torch.equal(net(x), trained)
    injection.attach()
    assert torch.equal(net(x), trained)


def test_only_the_adapter_is_trainable(net):
    inject(net)
    trainable = [n for n, p in net.named_parameters() if p.requires_grad]
    assert trainable and all('lora_' in n for n in trainable)


def test_owned_norm_layers_are_trainable_copies(net):
    original = net.norm
    injection = inject(net, train_norm=True)
    assert injection.owned_norms() == [net.norm]
    assert all(p.requires_grad for p in net.norm.parameters())
    net.norm.weight.data.fill_(9)
    assert torch.equal(original.weight, torch.ones(8))
    assert not any(p.requires_grad for p in original.parameters())


def test_gradients_come_back_where_a_backbone_freezes_stages(net):
    injection = inject(net, train_norm=True)
    net.requires_grad_(False)
    injection.enable_gradients()
    trainable = {n for n, p in net.named_parameters() if p.requires_grad}
    assert {n
            for n in trainable
            if n.startswith('norm')} == {'norm.weight', 'norm.bias'}
    assert sum('lora_' in n for n in trainable) == 4
    assert len(trainable) == 6


def test_state_names_modules_as_the_backbone_does(net):
    injection = inject(net, train_norm=True)
    assert set(injection.lora_state()) == {
        'conv.lora_A.weight', 'conv.lora_B.weight',
        'block.fc.lora_A.weight', 'block.fc.lora_B.weight'
    }  # yapf: disable
    assert set(injection.norm_state()) == {
        'norm.weight', 'norm.bias', 'norm.running_mean', 'norm.running_var',
        'norm.num_batches_tracked'
    }


def test_state_is_a_copy(net):
    injection = inject(net)
    state = injection.lora_state()
    net.conv.lora_A.data.zero_()
    assert state['conv.lora_A.weight'].abs().sum() > 0


def test_values_are_loaded_bit_for_bit(net):
    other = inject(Net(), train_norm=True)
    other.owned_norms()[0].running_mean.fill_(3)
    injection = inject(net, train_norm=True)
    injection.load(other.lora_state(), other.norm_state())
    for mine, theirs in ((injection.lora_state(), other.lora_state()),
                         (injection.norm_state(), other.norm_state())):
        assert all(torch.equal(mine[k], theirs[k]) for k in theirs)


def test_expert_without_norms_trains_copies_of_the_base_s(net):
    injection = inject(net, train_norm=True)
    injection.load(injection.lora_state(), {})
    assert torch.equal(injection.norm_state()['norm.weight'], net.norm.weight)


@pytest.mark.parametrize('use_rslora', [False, True])
def test_trained_adapter_computes_what_merged_weights_do(net, use_rslora):
    injection, x = inject(net, use_rslora=use_rslora), torch.randn(2, 3, 9, 9)
    live = net(x)
    adapter = injection.adapter()
    injection.detach()
    merged = merge_adapters(dict(net.named_parameters()), [(1.0, adapter)])
    got = torch.func.functional_call(net, merged, (x, ))
    torch.testing.assert_close(got, live, rtol=1e-5, atol=1e-5)


def test_peft_decides_how_an_adapter_starts(net):
    torch.manual_seed(7)
    injection = LoRAInjection(net, ['block.fc'], LORA, train_norm=False)
    injection.detach()
    torch.manual_seed(7)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=['block.fc'])
    theirs = inject_adapter_in_model(config, net).block['fc']
    state = injection.lora_state()
    assert torch.equal(state['block.fc.lora_A.weight'],
                       theirs.lora_A['default'].weight)
    assert not state['block.fc.lora_B.weight'].any()


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
    net.act = nn.GELU()
    net.layers = nn.Sequential(nn.Linear(4, 4), net.act, nn.Linear(4, 4))
    net.requires_grad_(False)
    injection = LoRAInjection(net, ['layers.2'], LORA, train_norm=False)
    assert isinstance(net.act, RecomputedGELU)
    assert isinstance(net.layers[1], RecomputedGELU)
    original = net.act.activation
    injection.detach()
    assert net.act is original and net.layers[1] is original


def test_nothing_is_computed_below_the_lowest_adapter(net):
    LoRAInjection(net, ['block.fc'], LORA, train_norm=False)
    features = net.norm(net.conv(torch.randn(2, 3, 8, 8)))
    assert not features.requires_grad


def test_layer_whose_name_ends_alike_is_left_alone():
    net = nn.ModuleDict(
        dict(
            fc=nn.Linear(4, 4), block=nn.ModuleDict(dict(fc=nn.Linear(4, 4)))))
    net.requires_grad_(False)
    LoRAInjection(net, ['fc'], LORA, train_norm=False)
    assert isinstance(net['block']['fc'], nn.Linear)
    assert not isinstance(net['fc'], nn.Linear)


def test_name_with_a_regular_expression_in_it_is_taken_literally():
    net = nn.ModuleDict({'a+': nn.Linear(4, 4), 'aa': nn.Linear(4, 4)})
    net.requires_grad_(False)
    LoRAInjection(net, ['a+'], LORA, train_norm=False)
    assert isinstance(net['aa'], nn.Linear)


def test_second_injection_after_the_first_was_detached(net):
    inject(net).detach()
    second = inject(net)
    assert len(second.lora_state()) == 4
    assert not hasattr(net, 'peft_config')
