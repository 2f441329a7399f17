# SPDX-License-Identifier: Apache-2.0
"""The ways to run experts give the same features.

``test_backbone_families.py`` compares them over many backbones.
"""
from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmseg.registry import MODELS
from mmseg_mile.adapters import lora_expert_backbone as expert_forward
from mmseg_mile.adapters.lora_expert_backbone import LoRAExpertBackbone
from mmseg_mile.structures import Routing

X = torch.linspace(-2, 2, 4 * 3 * 32 * 32).view(4, 3, 32, 32).sin()
NAMES = ('one', 'two')


@MODELS.register_module(force=True)
class LastLevelBackbone(nn.Module):
    """Returns a tensor, as mmseg's real-time backbones do to predict."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Give (B, 4, H, W)."""
        return self.conv(x)


def routing(*shares: float) -> Routing:
    """The weight of expert 'one' for each image; 'two' has the rest."""
    weights = torch.tensor([[share, 1 - share] for share in shares])
    return Routing(NAMES, weights, torch.zeros_like(weights),
                   torch.zeros(len(shares), dtype=torch.bool))


@pytest.fixture
def both(make, learned):
    """The same experts behind either executor."""
    backbones = []
    for executor in ('merged', 'low_rank'):
        backbone = make(train_norm=True, executor=executor)
        torch.manual_seed(2)
        learned(backbone, *NAMES)
        backbones.append(backbone)
    return backbones


def run(backbone: nn.Module, target: object, x: Tensor = X) -> list[Tensor]:
    """Features with some experts."""
    with torch.no_grad(), backbone.using(target):
        out = backbone(x)
    return [out] if isinstance(out, Tensor) else list(out)


def assert_near(got: list[Tensor], wanted: list[Tensor]) -> None:
    """Compare to 1e-5 of the largest value of each level."""
    assert len(got) == len(wanted)
    for mine, theirs in zip(got, wanted):
        assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_unknown_executor_is_refused_with_those_that_exist(make):
    with pytest.raises(
            ValueError,
            match=r"backbone.executor must be one of \('auto', 'merged', "
            r"'low_rank'\), got 'fast'"):
        make(executor='fast')


def test_executor_can_be_exchanged_between_predictions(both):
    merged, low_rank = both
    wanted = run(merged, routing(0.0, 1.0, 0.0, 0.5))
    merged.execution.executor = 'low_rank'
    seen = images_of(merged)
    assert_near(run(merged, routing(0.0, 1.0, 0.0, 0.5)), wanted)
    assert seen[-1] == 4
    with pytest.raises(ValueError, match="got 'fast'"):
        merged.execution.executor = 'fast'
    assert merged.execution.executor == 'low_rank'


@pytest.mark.parametrize('shares', [
    (1.0, 0.0, 0.0, 1.0),
    (0.0, 1.0, 0.0, 1.0),
    (0.25, 0.75, 1.0, 0.25),
])
def test_low_rank_pass_gives_what_merged_weights_give(both, shares):
    merged, low_rank = both
    assert_near(run(low_rank, routing(*shares)), run(merged, routing(*shares)))


@pytest.mark.parametrize('executor', ['merged', 'low_rank'])
def test_images_come_back_in_their_order(both, executor):
    backbone = both[executor == 'low_rank']
    mixed = run(backbone, routing(0.0, 1.0, 0.0, 1.0))
    for index, name in enumerate(('two', 'one', 'two', 'one')):
        alone = run(backbone, name, X[index:index + 1])
        assert_near([level[index:index + 1] for level in mixed], alone)


@pytest.mark.parametrize('executor', ['merged', 'low_rank'])
def test_experts_of_a_mixed_batch_differ_from_each_other(both, executor):
    backbone = both[executor == 'low_rank']
    level = run(backbone, routing(0.0, 1.0), X[:1].repeat(2, 1, 1, 1))[-1]
    assert (level[0] - level[1]).abs().max() > 1e-2 * level.abs().max()


def test_passes_are_one_per_mixture_with_merged_weights(both):
    merged, _ = both
    seen = images_of(merged)
    run(merged, routing(0.0, 1.0, 0.0, 0.5))
    assert seen == [2, 1, 1]
    groups = [group for group, in merged.passes(routing(0., 1., 0., .5), X)]
    assert [indices for _, indices in groups] == [[0, 2], [1], [3]]


def test_low_rank_pass_runs_the_whole_batch_once(both):
    _, low_rank = both
    run(low_rank, routing(0.0, 1.0, 0.0, 0.5))
    seen = images_of(low_rank)
    run(low_rank, routing(0.0, 1.0, 0.0, 0.5))
    assert seen == [4]
    groups, = low_rank.passes(routing(0.0, 1.0, 0.0, 0.5), X)
    assert [indices for _, indices in groups] == [[0, 2], [1], [3]]


def test_large_images_of_one_expert_are_split_on_a_cpu(both, monkeypatch):
    merged, _ = both
    wanted = run(merged, routing(1.0, 0.0, 1.0, 1.0))
    monkeypatch.setattr(expert_forward, '_CPU_PIXELS', 2 * 32 * 32)
    seen = images_of(merged)
    assert_near(run(merged, routing(1.0, 0.0, 1.0, 1.0)), wanted)
    assert seen == [2, 1, 1]
    monkeypatch.setattr(expert_forward, '_CPU_PIXELS', 1)
    passes = merged.passes(routing(1.0, 0.0, 1.0, 1.0), X)
    assert [i for (_, i), in passes] == [[0], [2], [3], [1]]


def test_images_are_not_split_elsewhere(both, monkeypatch):
    merged, _ = both
    monkeypatch.setattr(expert_forward, '_CPU_PIXELS', 1)
    passes = merged.passes(routing(1.0, 0.0, 1.0), X.to('meta')[:3])
    assert [i for (_, i), in passes] == [[0, 2], [1]]


def test_batch_of_a_single_expert_is_merged_by_either(both):
    merged, low_rank = both
    for wanted, got in zip(
            run(merged, routing(1., 1., 1., 1.)),
            run(low_rank, routing(1., 1., 1., 1.))):
        assert torch.equal(got, wanted)


def images_of(backbone: nn.Module) -> list[int]:
    """Grows by the number of images of each forward."""
    seen: list[int] = []
    backbone.backbone.stem.register_forward_hook(
        lambda _, x, __: seen.append(len(x[0])))
    return seen


@pytest.mark.parametrize('executor', ['merged', 'low_rank'])
def test_single_tensor_is_put_together_from_passes(learned, executor):
    backbone = LoRAExpertBackbone(
        dict(type='LastLevelBackbone'),
        lora=dict(r=2, lora_alpha=4),
        executor=executor).eval()
    learned(backbone, *NAMES)
    mixed, = run(backbone, routing(0.0, 1.0, 0.0, 1.0))
    assert_near([mixed[1::2]], run(backbone, 'one', X[1::2]))


@pytest.mark.parametrize('executor', ['merged', 'low_rank'])
def test_base_is_untouched_by_predicting(both, executor):
    backbone = both[executor == 'low_rank']
    before, state = backbone.fingerprint(), list(backbone.state_dict())
    run(backbone, routing(0.0, 1.0, 0.5, 1.0))
    assert backbone.fingerprint() == before
    assert list(backbone.state_dict()) == state


def test_executor_goes_on_after_an_expert_was_trained(both):
    merged, low_rank = both
    for backbone in both:
        run(backbone, routing(0.0, 1.0), X[:2])
        backbone.train_expert('two')
        backbone.train()
        with torch.no_grad():
            for name, value in backbone.named_parameters():
                if 'lora_B' in name:
                    value.add_(0.1)
        during = run(backbone, routing(0.0, 1.0), X[:2])
        backbone.finish_training()
        backbone.eval()
    after = run(low_rank, routing(0.0, 1.0), X[:2])
    assert_near(after, run(merged, routing(0.0, 1.0), X[:2]))
    assert not torch.allclose(after[-1][0], during[-1][0])
    torch.testing.assert_close(after[-1][1], during[-1][1])


def test_base_features_are_those_without_an_expert(both):
    merged, _ = both
    with torch.no_grad(), merged.using('one'):
        early, = merged.base_features(X, 1)
        assert not torch.equal(merged(X)[0], early)
    with torch.no_grad(), merged.base():
        assert torch.equal(merged(X)[0], early)


def test_base_features_are_those_of_the_base_while_an_expert_trains(both):
    merged, _ = both
    with torch.no_grad():
        wanted, = merged.base_features(X, 1)
        merged.train_expert('one')
        merged.train()
        got, = merged.base_features(X, 1)
    assert torch.equal(got, wanted)
    assert merged.training
