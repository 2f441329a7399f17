# SPDX-License-Identifier: Apache-2.0
"""Which layers a domain owns, and what an adapter adds."""
from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mmseg.models import ERFNet, MobileNetV2, ResNetV1c
from mmseg.registry import MODELS
from mmseg_mile.methods.baselines.mdil_segmentor import (ParallelAdapter,
                                                         adapted_chains,
                                                         add_adapters,
                                                         check_adaptable,
                                                         owned_by_domains)

IMAGE = (2, 3, 33, 47)


def resnet(depth=18):
    return ResNetV1c(depth=depth, base_channels=8, stem_channels=8)


def convolution(kernel=3, stride=1, padding=1, **changes):
    torch.manual_seed(0)
    return nn.Conv2d(
        2, 2, kernel, stride=stride, padding=padding, bias=False, **changes)


@pytest.mark.parametrize('build', [
    resnet,
    lambda: resnet(50),
    lambda: MobileNetV2(widen_factor=0.25),
    ERFNet,
])
def test_adapters_begin_without_effect_and_fit_every_size(build):
    backbone, image = build(), torch.randn(IMAGE)
    backbone.eval()
    before = backbone(image)
    add_adapters(backbone)
    for mine, theirs in zip(backbone(image), before):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    for adapter in backbone.modules():
        if isinstance(adapter, ParallelAdapter):
            nn.init.normal_(adapter.weight)
    assert any((a != b).any() for a, b in zip(backbone(image), before))


def test_adapter_adds_a_1x1_convolution_of_the_same_input():
    conv = convolution(stride=2)
    image = torch.randn(1, 2, 5, 7)
    before = conv(image)
    ParallelAdapter([conv])
    conv.adapter.weight.data = torch.tensor([[1.0, 0.0],
                                             [0.0, 2.0]])[..., None, None]
    wanted = before + image[:, :, ::2, ::2] * torch.tensor([1.0, 2.0])[:, None,
                                                                       None]
    torch.testing.assert_close(conv(image), wanted)


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


def test_copied_network_has_adapters_of_its_own():
    conv = convolution()
    ParallelAdapter([conv])
    other, image = copy.deepcopy(conv), torch.randn(1, 2, 4, 4)
    before = conv(image)
    nn.init.ones_(other.adapter.weight)
    torch.testing.assert_close(conv(image), before, rtol=0, atol=0)
    assert (other(image) != before).any()


def test_residual_network_has_one_beside_every_large_convolution():
    backbone = resnet()
    # the stem's three; two in each of eight blocks; none at the shortcuts
    assert len(adapted_chains(backbone)) == 3 + 16
    assert {
        conv.kernel_size
        for chain in adapted_chains(backbone).values()
        for conv in chain
    } == {(3, 3)}


def test_inverted_residual_has_one_beside_all_three_convolutions():
    backbone = MobileNetV2()
    chains = adapted_chains(backbone)
    # the stem, and seventeen blocks
    assert len(chains) == 1 + 17
    add_adapters(backbone)
    block = backbone.layer2[0].conv
    adapter = block[-1].conv.adapter
    assert adapter.weight.shape == (24, 16, 1, 1)
    assert (adapter.steps, adapter.groups) == ([2, 2], 1)
    assert not hasattr(block[1].conv, 'adapter')


def test_pair_of_one_dimensional_convolutions_has_one():
    chains = adapted_chains(ERFNet())
    pairs = [c for c in chains.values() if len(c) == 2]
    assert {tuple(conv.kernel_size for conv in pair)
            for pair in pairs} == {((3, 1), (1, 3))}
    # two pairs in each of the encoder's 13 and the decoder's 4 blocks
    assert len(pairs) == 2 * (13 + 4)


@pytest.mark.parametrize('conv', [
    convolution(kernel=1, padding=0),
    convolution(kernel=2, stride=2, padding=0),
    nn.ConvTranspose2d(2, 2, 3, padding=1),
])
def test_what_has_no_parallel_of_equal_size_stays_shared(conv):
    assert adapted_chains(nn.Sequential(conv)) == {}


def test_grouped_convolution_has_an_adapter_in_as_many_groups():
    conv = convolution(groups=2)
    add_adapters(nn.Sequential(conv))
    assert conv.adapter.groups == 2


def test_domains_own_norms_and_adapters_and_nothing_else():
    backbone = nn.Sequential(convolution(), nn.BatchNorm2d(2))
    add_adapters(backbone)
    assert owned_by_domains(backbone) == {
        '0.adapter.weight', '1.weight', '1.bias', '1.running_mean',
        '1.running_var', '1.num_batches_tracked'
    }


@pytest.mark.parametrize('backbone, message', [
    (dict(type='MixVisionTransformer'), 'has no batch norm'),
    (dict(type='ResNetV1c', depth=18, with_cp=True), 'with_cp=True'),
])
def test_backbone_that_cannot_be_shared_is_refused(backbone, message):
    with pytest.raises(ValueError, match=message):
        check_adaptable(MODELS.build(backbone))


def test_backbone_without_a_place_for_adapters_is_refused():
    backbone = nn.Sequential(
        convolution(kernel=1, padding=0), nn.BatchNorm2d(2))
    with pytest.raises(ValueError, match='no place for an adapter'):
        check_adaptable(backbone)
