# SPDX-License-Identifier: Apache-2.0
"""CLIP's last layers per mask, against mmseg's own."""
from __future__ import annotations

import pytest
import tiny_san
import torch
from mmengine.registry import init_default_scope

from mmseg.models.decode_heads.san_head import RecWithAttnbias
from mmseg_mile.methods.semla.side_adapter_clip import MaskRecognition


@pytest.fixture
def pair():
    """Mmseg's module and ours, with the same values."""
    init_default_scope('mmseg')
    stock = RecWithAttnbias(**tiny_san.MASKGEN_CFG).eval()
    mine = MaskRecognition(**tiny_san.MASKGEN_CFG).eval()
    mine.load_state_dict(stock.state_dict(), strict=True)
    return stock, mine


def feature():
    """Two images of 3 x 4 patches, and their class tokens."""
    return torch.randn(2, 32, 3, 4), torch.randn(2, 32)


@torch.no_grad()
@pytest.mark.parametrize('heads', [1, 2])
@pytest.mark.parametrize('biases', [1, 2])
def test_masks_are_embedded_as_by_mmsegs_own(pair, heads, biases):
    stock, mine = pair
    bias = [3 * torch.randn(2, heads, 6, 7, 9) for _ in range(biases)]
    seen = feature()
    got, whole = mine(bias, seen)
    torch.testing.assert_close(got, stock(bias, seen), rtol=1e-4, atol=1e-5)
    assert whole.shape == (2, tiny_san.TEXT)


@torch.no_grad()
def test_image_does_not_look_at_its_masks(pair):
    _, mine = pair
    seen = feature()
    one, other = (
        mine([3 * torch.randn(2, 1, 6, 7, 9)], seen) for _ in range(2))
    assert not torch.allclose(one[0], other[0], atol=1e-3)
    torch.testing.assert_close(one[1], other[1])


@torch.no_grad()
def test_mask_without_bias_sees_what_the_image_sees(pair):
    """But the class token, which masks do not look at."""
    _, mine = pair
    embeds, _ = mine([torch.zeros(2, 1, 6, 7, 9)], feature())
    torch.testing.assert_close(embeds, embeds[:, :1].expand_as(embeds))
