# SPDX-License-Identifier: Apache-2.0
"""MDIL: what domains share moves, what a domain owns does not."""
from __future__ import annotations

import copy

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from tiny import (DAY, DUSK, NIGHT, TINY_MODEL, batch_of, learn_task,
                  one_model, train)
from torch import nn

from mmseg.models import ERFNet, MobileNetV2, ResNetV1c
from mmseg_mile.methods.baselines.mdil_segmentor import (ParallelAdapter,
                                                         adapted_chains,
                                                         check_adaptable,
                                                         owned_by_domains)

SHARED, OWNED = 'layer1.0.conv1.weight', 'layer1.0.conv1.adapter.weight'

# -- adapters ----------------------------------------------------------------


def resnet(depth=18):
    return ResNetV1c(depth=depth, base_channels=8, stem_channels=8)


def convolution(kernel=3, stride=1, padding=1, **changes):
    torch.manual_seed(0)
    return nn.Conv2d(
        2, 2, kernel, stride=stride, padding=padding, bias=False, **changes)


def adapt(backbone):
    """The adapters, each in its place."""
    return [ParallelAdapter(c) for c in adapted_chains(backbone).values()]


@pytest.mark.parametrize('build', [
    resnet,
    lambda: resnet(50),
    lambda: MobileNetV2(widen_factor=0.25),
    ERFNet,
])
def test_adapters_begin_without_effect_and_fit_every_size(build):
    backbone, image = build(), torch.randn(2, 3, 33, 47)
    backbone.eval()
    before = backbone(image)
    adapters = adapt(backbone)
    assert all(map(torch.equal, backbone(image), before))
    for adapter in adapters:
        nn.init.normal_(adapter.weight)
    assert not any(map(torch.equal, backbone(image)[-1:], before[-1:]))


def test_adapter_adds_a_1x1_convolution_of_the_same_input():
    conv = convolution(stride=2)
    image = torch.randn(1, 2, 5, 7)
    before = conv(image)
    ParallelAdapter([conv])
    conv.adapter.weight.data = torch.diag(torch.tensor([1., 2.]))[..., None,
                                                                  None]
    added = image[:, :, ::2, ::2] * torch.tensor([1., 2.])[:, None, None]
    torch.testing.assert_close(conv(image), before + added)
    # a copy has an adapter of its own
    other = copy.deepcopy(conv)
    nn.init.zeros_(other.adapter.weight)
    torch.testing.assert_close(other(image), before)
    torch.testing.assert_close(conv(image), before + added)


def test_adapter_of_a_chain_goes_from_its_beginning_to_its_end():
    chain = nn.Sequential(convolution(), nn.ReLU(), convolution(stride=2))
    image = torch.randn(1, 2, 5, 7)
    before = chain(image)
    ParallelAdapter([chain[0], chain[2]])
    nn.init.dirac_(chain[2].adapter.weight)
    torch.testing.assert_close(chain(image), before + image[:, :, ::2, ::2])


def test_gradient_of_few_channels_laid_out_last():
    conv = nn.Conv2d(3, 16, 3, stride=2, padding=1)
    ParallelAdapter([conv])
    conv.to(memory_format=torch.channels_last)
    # torch 2.13 would end the process if the adapter had a stride
    conv(torch.randn(8, 3, 96, 192)).sum().backward()
    assert conv.adapter.weight.grad.abs().sum() > 0


def test_every_large_convolution_has_one_and_every_taken_apart_block():
    # the stem's three; two in each of eight blocks; none at the shortcuts
    assert len(adapted_chains(resnet())) == 3 + 16
    # the stem, and seventeen blocks of three convolutions
    backbone = MobileNetV2()
    assert len(adapt(backbone)) == 1 + 17
    block = backbone.layer2[0].conv
    adapter = block[-1].conv.adapter
    assert adapter.weight.shape == (24, 16, 1, 1)
    assert (adapter.steps, adapter.groups) == ([2, 2], 1)
    assert not hasattr(block[1].conv, 'adapter')
    # two pairs in each of the encoder's 13 and the decoder's 4 blocks
    pairs = [c for c in adapted_chains(ERFNet()).values() if len(c) == 2]
    assert {tuple(conv.kernel_size for conv in pair)
            for pair in pairs} == {((3, 1), (1, 3))}
    assert len(pairs) == 2 * (13 + 4)


@pytest.mark.parametrize('conv', [
    convolution(kernel=1, padding=0),
    convolution(kernel=2, stride=2, padding=0),
    nn.ConvTranspose2d(2, 2, 3, padding=1),
])
def test_what_has_no_parallel_of_equal_size_stays_shared(conv):
    backbone = nn.Sequential(conv, nn.BatchNorm2d(2))
    assert adapted_chains(backbone) == {}
    with pytest.raises(ValueError, match='no place for an adapter'):
        check_adaptable(backbone)


def test_domains_own_norms_and_adapters_and_nothing_else():
    backbone = nn.Sequential(convolution(groups=2), nn.BatchNorm2d(2))
    adapter, = adapt(backbone)
    assert adapter.groups == 2
    assert owned_by_domains(backbone) == {
        '0.adapter.weight', '1.weight', '1.bias', '1.running_mean',
        '1.running_var', '1.num_batches_tracked'
    }


# -- domains -----------------------------------------------------------------


@pytest.fixture
def learned():
    model = one_model('MDILSegmentor')
    for task in (DAY, NIGHT):
        learn_task(model, task)
    return model


def test_domain_begins_as_the_one_before(learned):
    before = copy.deepcopy(learned.state_dict())
    learned.begin_task(DUSK, [])
    for key, value in learned.state_dict().items():
        if 'conv_seg' in key:
            # 'road' alone is known by name
            value, before[key] = value[1:], before[key][1:]
        assert torch.equal(value, before[key])


def test_earlier_domain_keeps_all_but_what_is_shared(learned):
    before = copy.deepcopy(learned.state_dict())
    learn_task(learned, DUSK)
    learned.activate('night')
    moved = {key for key, value in learned.state_dict().items()
             if not torch.equal(value, before[key])}  # yapf: disable
    assert f'backbone.{SHARED}' in moved
    assert moved <= learned.shared_names()


def test_shared_values_are_kept_once_and_others_per_domain(learned):
    whole = sum(v.numel() for v in learned.state_dict().values())
    shared = sum(
        learned.get_parameter(n).numel() for n in learned.shared_names())
    two = learned.kept_cost([])['params']
    assert two == shared + 2 * (whole - shared)
    assert whole < two < 2 * whole


# -- distillation ------------------------------------------------------------


def losses_of(model, seed=3):
    data = model.data_preprocessor(batch_of(DUSK, seed), True)
    return model.train().loss(**data)


def move_shared(model):
    weight = model.get_parameter('backbone.stem.0.weight')
    weight.data.add_(torch.randn_like(weight))


def test_nothing_is_distilled_before_answers_can_have_moved(learned):
    first = one_model('MDILSegmentor')
    first.begin_task(DAY, [])
    assert 'loss_mdil' not in losses_of(first)
    learned.begin_task(DUSK, [])
    assert losses_of(learned)['loss_mdil'].item() == 0


def test_answers_of_all_earlier_domains_are_held(learned):
    learned.begin_task(DUSK, [])
    learned.mdil_weight = 2.0
    move_shared(learned)
    both = losses_of(learned)['loss_mdil']
    single, domains = [], learned._kept
    for name in ('day', 'night'):
        learned._kept = {name: domains[name]}
        single.append(losses_of(learned)['loss_mdil'])
    assert min(single) > 0
    torch.testing.assert_close(both, sum(single))
    learned.mdil_weight = 1.0
    torch.testing.assert_close(losses_of(learned)['loss_mdil'], single[-1] / 2)


def test_divergence_moves_what_is_shared_and_nothing_else(learned):
    learned.begin_task(DUSK, [])
    move_shared(learned)
    losses = losses_of(learned)
    losses['loss_mdil'].backward()
    assert {n for n, p in learned.named_parameters() if p.grad is not None
            } == learned.shared_names()  # yapf: disable
    losses['decode.loss_ce'].backward()
    assert all(p.grad is not None for p in learned.parameters())


def test_divergence_looks_at_no_statistic_of_a_batch(learned):
    key = 'backbone.layer1.0.bn1.num_batches_tracked'
    counts = [state[key].item() for state, _, _ in learned._kept.values()]
    learned.begin_task(DUSK, [])
    before = learned.get_buffer(key).item()
    train(learned, DUSK, 1)
    assert counts == [s[key].item() for s, _, _ in learned._kept.values()]
    # one forward in training mode, whatever the other domains answered
    assert learned.get_buffer(key).item() == before + 1


def test_what_is_shared_has_a_hundredth_of_the_rate_from_the_second_on():
    model = one_model('MDILSegmentor')
    for task, rate in ((DAY, 1.0), (NIGHT, 0.01)):
        model.begin_task(task, [])
        config = model.optim_wrapper_config(
            dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1.0)))
        optimizer = build_optim_wrapper(model, config).optimizer
        names = {id(p): n for n, p in model.named_parameters()}
        rates = {
            names[id(p)]: group['lr']
            for group in optimizer.param_groups
            for p in group['params']
        }
        assert {rates[name] for name in model.shared_names()} == {rate}
        for name in (f'backbone.{OWNED}', 'backbone.layer1.0.bn1.weight',
                     'decode_head.conv_seg.weight'):
            assert rates[name] == 1.0
        model.end_task(task, [])


# -- refused -----------------------------------------------------------------


@pytest.mark.parametrize('changes, message', [
    (dict(mdil_weight=-1), 'model.mdil_weight must be >= 0, got -1'),
    (dict(shared_lr_mult=-1), 'model.shared_lr_mult must be >= 0, got -1'),
    (dict(backbone=TINY_MODEL['backbone']), 'is a LoRAExpertBackbone'),
    (dict(backbone=dict(type='MixVisionTransformer')), 'has no batch norm'),
    (dict(backbone=dict(type='ResNetV1c', depth=18, with_cp=True)),
     'with_cp=True'),
    (dict(decode_head=dict(
        type='EncHead', in_channels=[8, 16, 32, 64], in_index=[0, 1, 2, 3],
        channels=8, num_codes=2, num_classes=2)),
     "'EncHead' computes its loss"),
])  # yapf: disable
def test_config_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        one_model('MDILSegmentor', **changes)
