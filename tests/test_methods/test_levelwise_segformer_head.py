# SPDX-License-Identifier: Apache-2.0
"""The head is mmseg's own, computed another way."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmseg.registry import MODELS

CHANNELS = (4, 6, 8, 10)
SIZES = ((16, 24), (8, 12), (4, 6), (2, 3))
ODD_SIZES = ((17, 23), (9, 12), (5, 6), (3, 3))
VARIANTS = dict(
    batch=dict(),
    batch_without_affine=dict(norm_cfg=dict(type='BN', affine=False)),
    batch_without_statistics=dict(
        norm_cfg=dict(type='BN', track_running_stats=False)),
    group=dict(norm_cfg=dict(type='GN', num_groups=2)),
    no_norm=dict(norm_cfg=None),
    aligned=dict(align_corners=True),
    nearest=dict(interpolate_mode='nearest', align_corners=None),
    gelu=dict(act_cfg=dict(type='GELU')),
    two_levels=dict(in_channels=[6, 10], in_index=[1, 3]),
    finest_last=dict(in_index=[3, 1, 2, 0], in_channels=[10, 6, 8, 4]))
variants = pytest.mark.parametrize('kind', VARIANTS)


def features(sizes: tuple = SIZES) -> list[Tensor]:
    """A pyramid of random features."""
    return [torch.randn(2, c, *s) for c, s in zip(CHANNELS, sizes)]


def pair(**options: object) -> tuple[nn.Module, nn.Module]:
    """The stock head and ours, with the same values."""
    config = dict(
        in_channels=list(CHANNELS),
        in_index=[0, 1, 2, 3],
        channels=8,
        num_classes=5,
        dropout_ratio=0.0,
        norm_cfg=dict(type='BN'),
        align_corners=False)
    stock, ours = (
        MODELS.build(dict(type=kind, **{
            **config,
            **options
        })) for kind in ('SegformerHead', 'LevelwiseSegformerHead'))
    for value in stock.state_dict().values():
        # biases, norm layers and their statistics
        if value.dim() == 1:
            value.copy_(0.5 + torch.rand_like(value))
    ours.load_state_dict(stock.state_dict(), strict=True)
    return stock, ours


def assert_near(got: Tensor, wanted: Tensor, scale: float = 0.0) -> None:
    """Compare to 1e-5 of the largest value."""
    assert got.shape == wanted.shape
    scale = max(scale, float(wanted.detach().abs().max()))
    assert (got - wanted).abs().max() <= 1e-5 * scale


@torch.no_grad()
@pytest.mark.parametrize('sizes', [SIZES, ODD_SIZES])
@variants
def test_logits_are_the_stock_head_s(kind, sizes):
    stock, ours = pair(**VARIANTS[kind])
    x = features(sizes)
    before = [v.clone() for v in (*x, *ours.state_dict().values())]
    wanted = stock.eval()(x)
    assert wanted.std() > 1e-3
    assert_near(ours.eval()(x), wanted)
    after = (*x, *ours.state_dict().values())
    assert all(map(torch.equal, after, before))


@variants
def test_training_is_the_stock_head_s(kind):
    stock, ours = pair(**VARIANTS[kind])
    inputs, target, outs, grads = features(ODD_SIZES), None, [], []
    for head in (stock.train(), ours.train()):
        own = [level.clone().requires_grad_() for level in inputs]
        out = head(own)
        target = torch.randn_like(out) if target is None else target
        (out * target).sum().backward()
        outs.append(out)
        grads.append([p.grad for p in head.parameters()] +
                     [level.grad for level in own])
    assert_near(outs[1], outs[0])
    # a shift before a batch norm has no gradient but rounding
    scale = max(float(g.abs().max()) for g in grads[0] if g is not None)
    for wanted, got in zip(*grads):
        assert (got is None) == (wanted is None)
        if wanted is not None:
            assert_near(got, wanted, scale)
    # running statistics as well
    for got, wanted in zip(ours.buffers(), stock.buffers()):
        torch.testing.assert_close(got, wanted)


@torch.no_grad()
def test_statistics_of_the_day_are_folded_not_those_of_the_first_call():
    stock, ours = pair()
    x = features()
    ours.eval()(x)
    for head in (stock.eval(), ours):
        head.fusion_conv.bn.running_mean += 1
        head.convs[2].bn.weight.data *= 2
    assert_near(ours(x), stock(x))


@torch.no_grad()
@pytest.mark.parametrize('mode', [True, False])
def test_autocast_stays_near_float32(mode):
    _, ours = pair()
    x, ours = features(), ours.train(mode)
    wanted = ours(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        got = ours(x)
    assert got.dtype == torch.bfloat16
    error = (got.float() - wanted).abs().max() / wanted.abs().max()
    assert 0 < error < 0.05
