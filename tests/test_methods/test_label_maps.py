# SPDX-License-Identifier: Apache-2.0
"""Label maps are those of a resize followed by ``argmax``."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmseg_mile.methods import prediction as label_maps
from mmseg_mile.methods.prediction import label_map

# Grid of the logits, size of the label map.
RESIZES = dict(
    fourfold=((8, 12), (32, 48)),
    odd=((7, 11), (29, 45)),
    smaller=((32, 40), (13, 17)),
    taller_and_narrower=((9, 30), (31, 14)),
    same_rows=((16, 8), (16, 32)),
    same=((12, 10), (12, 10)),
    one_row=((1, 5), (9, 20)),
    from_one_value=((1, 1), (9, 7)),
    to_one_row=((9, 5), (1, 10)))


@pytest.fixture
def strips(monkeypatch):
    """Let strips of three rows at most be resized at a time."""

    def force(num_classes: int, width: int) -> None:
        monkeypatch.setattr(label_maps, '_STRIP_VALUES',
                            3 * num_classes * width + 1)

    return force


def stock(logits: Tensor, size: tuple, align_corners: bool) -> Tensor:
    """What mmseg does."""
    return F.interpolate(
        logits[None], size, mode='bilinear',
        align_corners=align_corners)[0].argmax(0)


@pytest.mark.parametrize('align_corners', [True, False])
@pytest.mark.parametrize('in_strips', [True, False])
@pytest.mark.parametrize('kind', RESIZES)
def test_labels_are_those_of_resize_and_argmax(strips, kind, in_strips,
                                               align_corners):
    grid, size = RESIZES[kind]
    logits = torch.randn(5, *grid)
    if in_strips:
        strips(5, size[1])
    got = label_map(logits, size, align_corners)
    wanted = stock(logits, size, align_corners)
    assert got.dtype == torch.long and got.shape == size
    assert torch.equal(got, wanted)


def test_all_rows_of_a_strip_are_resized_at_once(strips, monkeypatch):
    sizes, plain = [], F.interpolate
    strips(5, 48)
    monkeypatch.setattr(
        F, 'interpolate', lambda x, size, **kwargs:
        (sizes.append(tuple(size)), plain(x, size, **kwargs))[1])
    label_map(torch.randn(5, 8, 12), (32, 48), False)
    assert sizes == 10 * [(3, 48)] + [(2, 48)]


def test_strip_has_a_row_even_where_a_row_is_large(strips):
    strips(0, 0)
    logits = torch.randn(5, 8, 12)
    assert torch.equal(
        label_map(logits, (32, 48), False), stock(logits, (32, 48), False))


@pytest.mark.parametrize('in_strips', [True, False])
def test_class_that_wins_everywhere_fills_the_map(strips, in_strips):
    logits = torch.randn(5, 8, 12)
    logits[3] += 100
    if in_strips:
        strips(5, 48)
    assert (label_map(logits, (32, 48), False) == 3).all()


@pytest.mark.parametrize('in_strips', [True, False])
@pytest.mark.parametrize('size', [(8, 12), (32, 48)])
def test_first_of_equal_classes_wins(strips, size, in_strips):
    logits = torch.randn(1, 8, 12).expand(4, 8, 12).clone()
    logits[0] -= 1
    if in_strips:
        strips(4, size[1])
    assert (label_map(logits, size, False) == 1).all()


@pytest.mark.parametrize('size', [(8, 12), (32, 48)])
def test_logits_laid_out_with_channels_last_give_the_same_labels(size):
    batch = torch.randn(2, 5, 8, 12)
    other = batch.to(memory_format=torch.channels_last)
    assert not other[1].is_contiguous()
    assert torch.equal(
        label_map(other[1], size, False), stock(batch[1], size, False))


def test_logits_are_left_alone(strips):
    logits = torch.randn(5, 8, 12)
    before = logits.clone()
    strips(5, 48)
    label_map(logits, (32, 48), False)
    assert torch.equal(logits, before)


def test_single_class_has_label_zero():
    assert not label_map(torch.randn(1, 8, 12), (32, 48), False).any()
