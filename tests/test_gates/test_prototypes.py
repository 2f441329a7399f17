# SPDX-License-Identifier: Apache-2.0
"""Statistics of embeddings, on points whose answer can be seen."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.gates.prototypes import (Prototypes, drift_of, folds, k_means,
                                         own_embeddings, pack, runs, unpack)

CORNERS = torch.tensor([[0., 0], [0, 2], [10, 0], [10, 2]]).double()


def test_one_prototype_is_the_mean():
    assert k_means(CORNERS, 1).tolist() == [[5, 1]]


def test_two_prototypes_are_the_two_clusters():
    assert sorted(k_means(CORNERS, 2).tolist()) == [[0, 1], [10, 1]]


def test_one_prototype_per_point_at_most():
    centroids = k_means(CORNERS, 9)
    assert sorted(centroids.tolist()) == sorted(CORNERS.tolist())


def test_points_that_coincide_share_a_prototype():
    # more than 25 points, from where on torch.cdist may round
    x = torch.randn(3, 20).double().repeat(20, 1) * 100
    assert len(k_means(x, 8)) == 3


def test_clustering_is_not_random():
    x = torch.randn(60, 5).double()
    first = k_means(x, 4)
    torch.manual_seed(99)
    assert torch.equal(k_means(x, 4), first)


def test_counts_and_scatter_of_two_clusters():
    prototypes = Prototypes.of(CORNERS, 2)
    assert prototypes.counts.tolist() == [2, 2]
    # each point is one unit above or below its centroid
    assert unpack(prototypes.scatter, 2).tolist() == [[0, 0], [0, 4]]
    assert (prototypes.size, prototypes.num_images) == (2, 4)


def test_triangle_goes_row_by_row():
    matrix = torch.tensor([[1, 2, 3], [2, 4, 5], [3, 5, 6]])
    assert pack(matrix).tolist() == [1, 2, 3, 4, 5, 6]
    assert torch.equal(unpack(pack(matrix), 3), matrix)


def test_state_comes_back_bit_for_bit():
    prototypes = Prototypes.of(torch.randn(40, 7), 3)
    prototypes.reach = torch.rand((), dtype=torch.float64)
    state = prototypes.state()
    assert state['scatter'].shape == (28, )  # 7 * 8 / 2
    assert state['scatter'].dtype == torch.float32
    again = Prototypes.from_state(state)
    for name in ('centroids', 'counts', 'scatter', 'reach'):
        assert torch.equal(getattr(again, name), getattr(prototypes, name))
    assert again.usual.isnan() and again.limit.isnan()


def test_state_from_before_there_was_a_limit_of_its_own_is_taken():
    state = Prototypes.of(CORNERS, 1).state()
    del state['usual'], state['limit'], state['drift']
    again = Prototypes.from_state(state)
    assert again.drift.numel() == 0
    assert torch.equal(again.centroids, state['centroids'])
    assert again.usual.isnan() and again.limit.isnan()


def test_drift_is_the_mean_over_copies_of_how_they_move():
    images = torch.tensor([[1., 2.], [5., 5.]])
    looks = torch.stack([images, images + torch.tensor([2., 0.]), images - 4],
                        1)
    # of two images: (2, 0) and (-4, -4) each, the mean over both copies
    assert drift_of(looks).tolist() == [20, 16, 16]
    assert torch.equal(own_embeddings(looks), images)
    assert drift_of(images).numel() == 0
    assert torch.equal(own_embeddings(images), images)


def test_drift_counts_by_its_weight_where_it_is_known():
    prototypes = Prototypes.of(CORNERS, 2)
    assert prototypes.within(0.5).tolist() == [0, 0, 4]
    prototypes.drift = torch.tensor([20., 16., 16.])
    assert prototypes.within(0.5).tolist() == [10, 8, 12]
    assert prototypes.within(0).tolist() == [0, 0, 4]


@pytest.mark.parametrize('change', [
    lambda state: state.pop('reach'),
    lambda state: state.update(weights=torch.zeros(1))
])  # yapf: disable
def test_state_of_something_else_is_refused(change):
    state = Prototypes.of(CORNERS, 1).state()
    change(state)
    with pytest.raises(ValueError, match=r"not \['centroids', 'counts', 'rea"):
        Prototypes.from_state(state)


@pytest.mark.parametrize('deal', [folds, runs])
@pytest.mark.parametrize('num_images', [2, 5, 13])
def test_folds_cover_each_image_once(num_images, deal):
    parts = deal(num_images, 5)
    assert sorted(torch.cat(parts).tolist()) == list(range(num_images))
    assert all(len(part) for part in parts)


def test_neighbours_are_dealt_out_or_kept_together():
    assert [f.tolist() for f in folds(7, 3)] == [[0, 3, 6], [1, 4], [2, 5]]
    assert [f.tolist() for f in runs(7, 3)] == [[0, 1, 2], [3, 4], [5, 6]]
