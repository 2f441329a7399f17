# SPDX-License-Identifier: Apache-2.0
"""Statistics of embeddings, on points whose answer can be seen."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.models.gates.prototypes import (Prototypes, folds, k_means,
                                                shared_precision,
                                                squared_distances)

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
    assert prototypes.scatter.tolist() == [[0, 0], [0, 4]]


def test_state_comes_back_bit_for_bit():
    prototypes = Prototypes.of(torch.randn(40, 7), 3)
    prototypes.reach = torch.rand((), dtype=torch.float64)
    state = prototypes.state()
    assert state['scatter'].shape == (28, )  # 7 * 8 / 2
    again = Prototypes.from_state(state)
    for name in ('centroids', 'counts', 'scatter', 'reach'):
        assert torch.equal(getattr(again, name), getattr(prototypes, name))


def test_shared_precision_pools_the_scatter_within_tasks():
    # tasks far apart, each spread by one along its own axis
    one = Prototypes.of(torch.tensor([[-1., 0], [1, 0]]), 1)
    two = Prototypes.of(torch.tensor([[50., 49], [50, 51]]), 1)
    # (2 + 0) / 4 along each axis
    torch.testing.assert_close(
        shared_precision([one, two], 0.1),
        torch.diag(torch.tensor([2., 2.]).double()))


def test_shrinkage_weakens_correlation_only():
    line = Prototypes.of(torch.tensor([[-1., -1], [1, 1]]), 1)
    precision = shared_precision([line], 0.5)
    covariance = torch.tensor([[1.0, 0.5], [0.5, 1.0]]).double()
    torch.testing.assert_close(precision, covariance.inverse())


def test_constant_feature_divides_by_no_zero():
    flat = Prototypes.of(torch.tensor([[-1., 3], [1, 3]]), 1)
    assert shared_precision([flat], 0.1).isfinite().all()


def test_tasks_without_any_spread_divide_by_no_zero():
    point = Prototypes.of(torch.ones(1, 3), 1)
    assert shared_precision([point], 0.1).isfinite().all()


def test_distance_is_to_the_nearest_prototype():
    x = torch.tensor([[1., 1], [10, 4]]).double()
    distances = squared_distances(x, Prototypes.of(CORNERS, 2),
                                  torch.eye(2).double())
    assert distances.tolist() == [1, 9]


@pytest.mark.parametrize('num_images', [2, 5, 13])
def test_folds_cover_each_image_once(num_images):
    parts = folds(num_images, 5)
    assert sorted(torch.cat(parts).tolist()) == list(range(num_images))
    assert all(len(part) for part in parts)
