# SPDX-License-Identifier: Apache-2.0
"""Experts beside one frozen backbone: how they are made, used and kept."""
from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from mmseg.registry import MODELS
from mmseg_mile.adapters import lora_expert_backbone
from mmseg_mile.adapters.adapter import lora_delta
from mmseg_mile.adapters.lora_expert_backbone import LoRAExpertBackbone
from mmseg_mile.library.expert_store import ExpertStore
from mmseg_mile.structures import Expert, Routing

X = torch.linspace(-2, 2, 4 * 3 * 32 * 32).view(4, 3, 32, 32).sin()


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


def routing(*shares, names=('one', 'two')):
    """Weight of the first expert per image; the second has the rest."""
    weights = torch.tensor([[share, 1 - share] for share in shares])
    return Routing(names, weights, torch.zeros_like(weights),
                   torch.zeros(len(shares), dtype=torch.bool))


def step(backbone, *, lr=0.1):
    """Train what is trainable for one step."""
    backbone.train()
    optimizer = torch.optim.SGD(
        [p for p in backbone.parameters() if p.requires_grad], lr)
    sum(level.square().mean() for level in backbone(X)).backward()
    optimizer.step()
    backbone.zero_grad()


@pytest.fixture
def two(make, learned):
    """A backbone with experts 'one' and 'two' at rest."""
    backbone = make()
    learned(backbone, 'one', 'two')
    return backbone


@pytest.fixture
def busy(make, learned):
    """A backbone with expert 'one' at rest and 'two' in training."""
    backbone = make(train_norm=True)
    learned(backbone, 'one', 'two')
    backbone.train_expert('two')
    backbone.train()
    return backbone


# -- settings ----------------------------------------------------------------


def test_defaults_are_those_of_the_paper():
    # a frozen pretrained base, of which an expert owns no part
    default = {
        name: parameter.default
        for name, parameter in inspect.signature(
            LoRAExpertBackbone).parameters.items()
    }
    assert default['base_training'] == 'none'
    assert default['train_norm'] is False and default['with_cp'] is False
    assert default['lora'] is inspect.Parameter.empty


def test_unknown_base_training_is_refused(make):
    with pytest.raises(ValueError, match="'none' or 'first_task', got 'all'"):
        make(base_training='all')


@pytest.mark.parametrize('name, message', [
    ('one', r"'one' exists already.*\['one', 'two'\]"),
    ('a/b', 'task name'),
])
def test_expert_whose_name_is_taken_or_no_folder_is_refused(
        two, name, message):
    with pytest.raises(ValueError, match=message):
        two.add_expert(name)


@pytest.mark.parametrize('use', [
    lambda b: b.add_expert('new', init_from='nobody'),
    lambda b: b.train_expert('nobody'),
    lambda b: out_of(b, 'nobody'),
    lambda b: out_of(b, {'one': 0.5, 'nobody': 0.5}),
    lambda b: out_of(b, routing(1., 1., 1., 1., names=('one', 'nobody'))),
])  # yapf: disable
def test_unknown_expert_is_refused(two, use):
    with pytest.raises(ValueError, match=r"'nobody'; experts: \['one', 'two'"):
        use(two)


# -- running -----------------------------------------------------------------


def test_mixture_is_the_weighted_sum_of_deltas(two, make):
    reference = make()
    for target in two.targets:
        weight = reference.backbone.get_submodule(target).weight
        for name, share in (('one', 0.3), ('two', 0.7)):
            # lora_alpha / r = 2
            weight.data += share * 2 * lora_delta(
                *two.experts[name].factors(target))
    torch.testing.assert_close(
        out_of(two, {'one': 0.3, 'two': 0.7}), out(reference))  # yapf: disable


def test_each_image_of_a_batch_has_its_mixture(two):
    shares = (0.0, 1.0, 0.25, 0.0)
    mixed = out_of(two, routing(*shares))
    for index, share in enumerate(shares):
        alone = out_of(two, {
            'one': share,
            'two': 1 - share
        }, X[index:index + 1])
        torch.testing.assert_close(mixed[index:index + 1], alone)
    assert not torch.allclose(*out_of(two, routing(0., 1.), X[[0, 0]]))


def test_backbone_that_returns_one_tensor_is_routed_alike(learned):
    backbone = LoRAExpertBackbone(
        dict(type='SingleTensorBackbone'), lora=dict(r=2, lora_alpha=4))
    learned(backbone, 'one', 'two')
    with torch.no_grad(), backbone.using(routing(0., 1., 0., 1.)):
        mixed = backbone(X)
    with torch.no_grad(), backbone.using('one'):
        torch.testing.assert_close(mixed[1::2], backbone(X[1::2]))


@pytest.mark.parametrize('images, sizes', [(4, [2, 1, 1]), (1, [1] * 4)])
def test_images_of_a_mixture_share_a_forward_few_at_once_on_a_cpu(
        two, monkeypatch, images, sizes):
    route, seen = routing(0., 1., 0., 0.5), []
    wanted = out_of(two, route)
    monkeypatch.setattr(lora_expert_backbone, '_CPU_PIXELS', images * 32 * 32)
    two.backbone.stem.register_forward_hook(
        lambda _, x, __: seen.append(len(x[0])))
    torch.testing.assert_close(out_of(two, route), wanted)
    assert seen == sizes


def test_blocks_nest_and_leave_the_base_alone(two):
    one, second, base = (out_of(two, t) for t in ('one', 'two', {}))
    before, state = two.fingerprint(), list(two.state_dict())
    with two.using('one'):
        with two.using(routing(0., 0., 0., 0.)):
            assert torch.equal(out(two), second)
            with two.base():
                assert torch.equal(out(two), base)
        assert torch.equal(out(two), one)
        assert two.fingerprint() == before
    assert torch.equal(out(two), base)
    assert two.fingerprint() == before and list(two.state_dict()) == state


def state_of(backbone):
    """Everything that a block must restore."""
    return ([(n, id(m), m.training) for n, m in backbone.named_modules()],
            [n for n, p in backbone.named_parameters() if p.requires_grad])


@pytest.mark.parametrize('block', [
    lambda b: b.base(), lambda b: b.using('one'),
    lambda b: b.using(routing(0., 1., 0., 1.))
])  # yapf: disable
def test_block_restores_training_even_when_it_raises(busy, block):
    before = state_of(busy)
    with pytest.raises(KeyError), block(busy):
        assert state_of(busy) != before
        raise KeyError
    assert state_of(busy) == before


def test_base_and_others_predict_while_an_expert_is_in_training(busy, make):
    base, (early, ) = make(), busy.base_features(X, 1)
    with busy.base():
        assert torch.equal(out(busy), out(base))
    with torch.no_grad():
        assert torch.equal(early, base(X)[0])
    during = out_of(busy, 'one')
    busy.eval()
    live = out(busy)
    busy.finish_training()
    assert torch.equal(during, out_of(busy, 'one'))
    torch.testing.assert_close(out_of(busy, 'two'), live)
    assert not torch.equal(out(busy), live)


# -- training ----------------------------------------------------------------


def test_warm_start_copies_values_and_shares_none(make, learned):
    backbone = make(train_norm=True)
    learned(backbone, 'one')
    backbone.add_expert('two', init_from='one')
    before = out_of(backbone, 'one')
    assert torch.equal(out_of(backbone, 'two'), before)
    backbone.train_expert('two')
    step(backbone)
    backbone.finish_training()
    backbone.eval()
    assert not torch.equal(out_of(backbone, 'two'), before)
    assert torch.equal(out_of(backbone, 'one'), before)


def test_second_training_at_a_time_is_refused(busy):
    with pytest.raises(RuntimeError, match="'two' is still in training"):
        busy.train_expert('one')


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


def test_first_task_trains_the_base_which_is_frozen_afterwards(make):
    backbone = make(train_norm=True, base_training='first_task')
    before = backbone.fingerprint()
    backbone.add_expert('one')
    out_of(backbone, 'one')
    backbone.train_base()
    assert all(p.requires_grad for p in backbone.backbone.parameters())
    step(backbone)
    backbone.finish_training()
    backbone.eval()
    first = backbone.fingerprint()
    assert first != before
    assert not any(p.requires_grad for p in backbone.parameters())
    # the first expert follows the base
    assert torch.equal(out_of(backbone, 'one'), out(backbone))
    backbone.add_expert('two')
    backbone.train_expert('two')
    step(backbone)
    backbone.finish_training()
    assert backbone.fingerprint() == first


def test_fingerprint_sees_the_base_alone(busy, make):
    plain = make()
    plain.to(memory_format=torch.channels_last)
    assert busy.fingerprint() == plain.fingerprint()
    plain.backbone.layer1[0].norm1.running_mean[0] += 1e-6
    assert busy.fingerprint() != plain.fingerprint()


# -- ``lora=None``: experts that adapt no layer ------------------------------


def test_expert_without_adapter_is_the_base_and_trains_nothing_of_it(make):
    backbone = make(lora=None)
    before, base = backbone.fingerprint(), out(backbone)
    backbone.add_expert('one')
    backbone.add_expert('two', init_from='one')
    assert backbone.targets == []
    for target in ('two', {'one': 0.5, 'two': 0.5}):  # yapf: disable
        assert torch.equal(out_of(backbone, target), base)
    backbone.train_expert('one')
    backbone.train()
    assert not any(p.requires_grad for p in backbone.parameters())
    torch.testing.assert_close(out(backbone), base)
    backbone.finish_training()
    assert backbone.fingerprint() == before


def test_expert_without_adapter_may_own_norm_layers(make):
    backbone = make(lora=None, train_norm=True)
    base = out(backbone)
    backbone.add_expert('one')
    backbone.train_expert('one')
    backbone.train()
    out(backbone)
    backbone.finish_training()
    backbone.eval()
    # its running statistics moved, those of the base did not
    assert not torch.equal(out_of(backbone, 'one'), base)
    assert torch.equal(out(backbone), base)


# -- experts from a library --------------------------------------------------


def stored(backbone, name, **changes):
    """Give an expert as a library keeps it."""
    adapter = backbone.experts[name].clone()
    values = dict(
        name=name,
        classes=('road', 'sky'),
        palette=((0, 0, 0), (1, 1, 1)),
        parts=dict(adapter=adapter.lora, norm=adapter.norm),
        configs=dict(adapter=backbone.lora_config),
        base_fingerprint=backbone.fingerprint())
    return Expert(**{**values, **changes})


@pytest.mark.parametrize('options', [
    dict(train_norm=True),
    dict(lora=dict(r=3, lora_alpha=9)),
], ids=['own norms', 'own rank and scaling'])  # yapf: disable
def test_expert_is_taken_over_bit_for_bit(make, learned, options):
    source, backbone = make(**options), make()
    learned(source, 'one')
    backbone.load_experts([stored(source, 'one')])
    assert torch.equal(out_of(backbone, 'one'), out_of(source, 'one'))


@pytest.mark.parametrize('use', [
    lambda b: b.add_expert('two', init_from='one'),
    lambda b: b.train_expert('one')
])  # yapf: disable
@pytest.mark.parametrize('lora, message', [
    (dict(r=2, lora_alpha=4), r"rank \[3\], scaling 3 .* 2, 2 and"),
    (None, "'one' has .* layers of rank"),
])
def test_training_an_expert_of_other_settings_is_refused(
        make, learned, use, lora, message):
    source, backbone = make(lora=dict(r=3, lora_alpha=9)), make(lora=lora)
    learned(source, 'one')
    backbone.experts['one'] = source.experts['one'].clone()
    with pytest.raises(ValueError, match=message):
        use(backbone)


def test_one_expert_of_another_base_keeps_all_out(make, two):
    backbone = make()
    mine = backbone.fingerprint()
    experts = [
        stored(two, 'one'),
        stored(two, 'two', base_fingerprint='f' * 64)
    ]
    with pytest.raises(
            ValueError,
            match=f"'two' was trained on the base {'f' * 16}, this.*"
            f'{mine[:16]}'):
        backbone.load_experts(experts)
    assert backbone.experts.names == ()


@pytest.fixture
def on_disk(make, learned, tmp_path):
    """A backbone and, in a folder, its expert 'one'."""
    source = make(train_norm=True)
    learned(source, 'one')
    store = ExpertStore(tmp_path)
    store.save_base({}, source.fingerprint())
    store.save(stored(source, 'one'))
    return source, store


def test_expert_on_disk_is_read_when_it_is_first_used(make, on_disk):
    source, store = on_disk
    backbone = make(train_norm=True, memory_budget_mb=0, merge_cache_size=1)
    backbone.load_experts(store.open(['one']))
    assert backbone.experts.names == ('one', )
    assert backbone.experts.cache.num_bytes == 0
    assert torch.equal(out_of(backbone, 'one'), out_of(source, 'one'))
    assert backbone.experts.cache.num_bytes > 0
    first = backbone.experts['one']
    backbone.add_expert('other')
    again = backbone.experts['one']
    assert again is not first
    for part in ('lora', 'norm'):
        mine, theirs = getattr(again, part), getattr(first, part)
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_changed_adapter_is_refused_by_name_on_first_use(make, on_disk):
    backbone, store = make(train_norm=True), on_disk[1]
    backbone.load_experts(store.open(['one']))
    path = store.root / 'one' / 'adapter_model.safetensors'
    path.write_bytes(path.read_bytes()[:-1] + b'?')
    with pytest.raises(ValueError, match='one/adapter_model.safetensors is'):
        out_of(backbone, 'one')


def test_expert_on_disk_that_does_not_fit_is_refused_on_first_use(
        make, on_disk):
    backbone = make(change=dict(base_channels=8))
    expert, = on_disk[1].open(['one'])
    expert.base_fingerprint = backbone.fingerprint()
    backbone.load_experts([expert])
    with pytest.raises(ValueError, match="'one' does not fit the layers"):
        out_of(backbone, 'one')
