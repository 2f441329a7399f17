# SPDX-License-Identifier: Apache-2.0
"""Experts beside one frozen backbone: how they are made, used and kept."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from mmseg.registry import MODELS
from mmseg_mile.adapters.adapter import lora_delta
from mmseg_mile.adapters.lora_expert_backbone import LoRAExpertBackbone
from mmseg_mile.structures import Routing

X = torch.linspace(-2, 2, 2 * 3 * 32 * 32).view(2, 3, 32, 32).sin()


@MODELS.register_module(force=True)
class SingleTensorBackbone(nn.Module):
    """Returns a tensor, as mmseg's real-time backbones do to predict."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        """Give (B, 4, H, W)."""
        return self.conv(x)


def out(backbone, x=X):
    """Give the last level."""
    with torch.no_grad():
        return backbone(x)[-1]


def out_of(backbone, target, x=X):
    """Give the last level of an expert or a mixture."""
    with backbone.using(target):
        return out(backbone, x)


def routing(*experts, names=('one', 'two')):
    """Route one image to each of ``experts``."""
    weights = torch.tensor([[float(n == e) for n in names] for e in experts])
    return Routing(names, weights, torch.zeros_like(weights),
                   torch.zeros(len(experts), dtype=torch.bool))


def step(backbone, *, lr=0.1):
    """Train what is trainable for one step."""
    backbone.train()
    optimizer = torch.optim.SGD(
        [p for p in backbone.parameters() if p.requires_grad], lr)
    sum(level.square().mean() for level in backbone(X)).backward()
    optimizer.step()
    backbone.zero_grad()


def test_unknown_base_training_is_refused(make):
    with pytest.raises(ValueError, match="'none' or 'first_task', got 'all'"):
        make(base_training='all')


def test_nothing_is_trainable_before_an_expert_is(make):
    assert not any(p.requires_grad for p in make().parameters())


def test_expert_of_a_taken_name_is_refused(make):
    backbone = make()
    backbone.add_expert('one')
    with pytest.raises(ValueError, match=r"'one' exists already.*\['one'\]"):
        backbone.add_expert('one')


def test_expert_whose_name_is_no_folder_is_refused(make):
    with pytest.raises(ValueError, match='task name'):
        make().add_expert('a/b')


def test_warm_start_copies_values_and_shares_none(make, learned):
    backbone = make(train_norm=True)
    learned(backbone, 'one')
    backbone.add_expert('two', init_from='one')
    assert torch.equal(out_of(backbone, 'two'), out_of(backbone, 'one'))
    before = out_of(backbone, 'one')
    backbone.train_expert('two')
    step(backbone)
    backbone.finish_training()
    backbone.eval()
    assert not torch.equal(out_of(backbone, 'two'), before)
    assert torch.equal(out_of(backbone, 'one'), before)


@pytest.mark.parametrize('use', [
    lambda b: b.add_expert('two', init_from='nobody'),
    lambda b: b.train_expert('nobody'),
    lambda b: out_of(b, 'nobody'),
    lambda b: out_of(b, {
        'one': 0.5,
        'nobody': 0.5
    }),
    lambda b: out_of(b, routing('one', 'one', names=('one', 'nobody'))),
])
def test_unknown_expert_is_refused(make, use):
    backbone = make()
    backbone.add_expert('one')
    with pytest.raises(ValueError, match=r"'nobody'; experts: \['one'\]"):
        use(backbone)


def test_removed_expert_is_gone_and_the_others_stay(make, learned):
    backbone = make()
    learned(backbone, 'one', 'two')
    two = out_of(backbone, 'two')
    out_of(backbone, 'one')
    del backbone.experts['one']
    assert backbone.experts.names == ('two', )
    assert torch.equal(out_of(backbone, 'two'), two)
    with pytest.raises(ValueError, match="unknown expert 'one'"):
        out_of(backbone, 'one')


def test_second_training_at_a_time_is_refused(make):
    backbone = make()
    backbone.add_expert('one')
    backbone.add_expert('two')
    backbone.train_expert('one')
    with pytest.raises(RuntimeError, match="'one' is still in training"):
        backbone.train_expert('two')


@pytest.mark.parametrize('train_norm', [True, False])
def test_only_owned_norm_layers_collect_statistics(make, train_norm):
    backbone = make(train_norm=train_norm)
    backbone.add_expert('one')
    backbone.train_expert('one')
    backbone.train()
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(m.training == train_norm for m in norms)


def test_adapters_train_where_the_backbone_freezes_stages(make):
    backbone = make(change=dict(frozen_stages=1))
    backbone.add_expert('one')
    backbone.train_expert('one')
    backbone.train()
    stage = backbone.backbone.layer1.named_parameters()
    trainable = {n for n, p in stage if p.requires_grad}
    assert trainable and all('lora_' in name for name in trainable)


@pytest.fixture
def busy(make, learned):
    """A backbone with expert 'one' at rest and 'two' in training."""
    backbone = make(train_norm=True)
    learned(backbone, 'one', 'two')
    backbone.train_expert('two')
    backbone.train()
    return backbone


def state_of(backbone):
    """Everything that a block must restore."""
    return ([(n, id(m), m.training) for n, m in backbone.named_modules()],
            [n for n, p in backbone.named_parameters() if p.requires_grad])


def test_base_is_itself_while_an_expert_is_in_training(busy, make):
    with busy.base():
        assert torch.equal(out(busy), out(make()))


def test_another_expert_predicts_while_one_is_in_training(busy):
    during = out_of(busy, 'one')
    busy.finish_training()
    busy.eval()
    assert torch.equal(during, out_of(busy, 'one'))


@pytest.mark.parametrize('block', [
    lambda b: b.base(), lambda b: b.using('one'),
    lambda b: b.using(routing('one', 'two'))
])  # yapf: disable
def test_block_restores_training_even_when_it_raises(busy, block):
    before = state_of(busy)
    with pytest.raises(KeyError), block(busy):
        assert state_of(busy) != before
        raise KeyError
    assert state_of(busy) == before


def test_forward_outside_of_a_block_is_the_expert_in_training(busy):
    busy.eval()
    live = out(busy)
    with busy.base():
        assert not torch.equal(out(busy), live)
    busy.finish_training()
    torch.testing.assert_close(out_of(busy, 'two'), live)
    assert not torch.equal(out(busy), live)


def test_blocks_nest(make, learned):
    backbone = make()
    learned(backbone, 'one', 'two')
    one, two, base = (out_of(backbone, 'one'), out_of(backbone,
                                                      'two'), out(backbone))
    with backbone.using('one'):
        with backbone.using('two'):
            assert torch.equal(out(backbone), two)
            assert torch.equal(out_of(backbone, {}), base)
            with backbone.base():
                assert torch.equal(out(backbone), base)
        assert torch.equal(out(backbone), one)
    assert torch.equal(out(backbone), base)


def test_mixture_is_the_weighted_sum_of_deltas(make, learned):
    backbone, reference = make(), make()
    learned(backbone, 'one', 'two')
    for target in backbone.targets:
        weight = reference.backbone.get_submodule(target).weight
        for name, share in (('one', 0.3), ('two', 0.7)):
            lora = backbone.experts[name].lora
            # lora_alpha / r = 2
            weight.data += share * 2 * lora_delta(
                lora[f'{target}.lora_A.weight'],
                lora[f'{target}.lora_B.weight'])
    torch.testing.assert_close(
        out_of(backbone, {
            'one': 0.3,
            'two': 0.7
        }), out(reference))


def test_soft_routing_mixes_per_image(make, learned):
    backbone = make()
    learned(backbone, 'one', 'two')
    soft = Routing(('one', 'two'), torch.tensor([[.25, .75], [1., 0.]]),
                   torch.zeros(2, 2), torch.zeros(2, dtype=torch.bool))
    mixed = out_of(backbone, soft)
    torch.testing.assert_close(
        mixed[:1], out_of(backbone, {
            'one': .25,
            'two': .75
        }, X[:1]))
    torch.testing.assert_close(mixed[1:], out_of(backbone, 'one', X[1:]))


def test_backbone_that_returns_one_tensor_is_routed_alike(learned):
    backbone = LoRAExpertBackbone(
        dict(type='SingleTensorBackbone'), lora=dict(r=2, lora_alpha=4))
    learned(backbone, 'one', 'two')
    with torch.no_grad(), backbone.using(routing('two', 'one')):
        mixed = backbone(X)
    assert mixed.shape == (2, 4, 30, 30)
    with torch.no_grad(), backbone.using('one'):
        torch.testing.assert_close(mixed[1:], backbone(X[1:]))


def test_first_task_trains_the_base_and_its_expert_follows(make):
    backbone = make(train_norm=True, base_training='first_task')
    before = backbone.fingerprint()
    backbone.add_expert('one')
    out_of(backbone, 'one')
    backbone.train_base()
    assert all(p.requires_grad for p in backbone.backbone.parameters())
    step(backbone)
    backbone.finish_training()
    backbone.eval()
    assert backbone.fingerprint() != before
    assert not any(p.requires_grad for p in backbone.parameters())
    assert torch.equal(out_of(backbone, 'one'), out(backbone))


def test_base_is_frozen_after_the_first_task(make):
    backbone = make(train_norm=True, base_training='first_task')
    backbone.add_expert('one')
    backbone.train_base()
    step(backbone)
    backbone.finish_training()
    first = backbone.fingerprint()
    backbone.add_expert('two')
    backbone.train_expert('two')
    step(backbone)
    backbone.finish_training()
    assert backbone.fingerprint() == first


def test_fingerprint_sees_one_changed_value(make):
    backbone = make()
    before = backbone.fingerprint()
    backbone.backbone.layer1[0].norm1.running_mean[0] += 1e-6
    assert backbone.fingerprint() != before


def test_fingerprint_does_not_see_experts_or_memory_layout(busy, make):
    plain = make()
    plain.to(memory_format=torch.channels_last)
    assert busy.fingerprint() == plain.fingerprint()
