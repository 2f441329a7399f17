# SPDX-License-Identifier: Apache-2.0
"""Statistics of embeddings, on points whose answer can be seen."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.gates.prototype_gate import PrototypeGate
from mmseg_mile.gates.prototypes import (Prototypes, k_means, merge_prototypes,
                                         own_embeddings, pack, unpack)

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


def test_perturbation_counts_by_its_weight_where_it_is_known():
    prototypes = Prototypes.of(CORNERS, 2)
    assert prototypes.within(0.5).tolist() == [0, 0, 4]
    prototypes.perturbation = torch.tensor([20., 16., 16.])
    assert prototypes.within(0.5).tolist() == [10, 8, 12]
    assert prototypes.within(0).tolist() == [0, 0, 4]


def test_state_comes_back_bit_for_bit():
    prototypes = Prototypes.of(torch.randn(40, 7), 3)
    state = prototypes.state()
    assert state['scatter'].shape == (28, )  # 7 * 8 / 2
    assert state['scatter'].dtype == torch.float32
    again = Prototypes.from_state(state).state()
    assert all(torch.equal(again[key], state[key]) for key in state)


@pytest.mark.parametrize('change', [
    lambda state: state.pop('max_distance'),
    lambda state: state.update(weights=torch.zeros(1))
])  # yapf: disable
def test_state_of_something_else_is_refused(change):
    state = Prototypes.of(CORNERS, 1).state()
    change(state)
    with pytest.raises(ValueError, match=r"not \['centroids', 'counts', 'max"):
        Prototypes.from_state(state)


def test_perturbation_is_the_mean_over_views_of_how_they_move():
    images = torch.tensor([[1., 2.], [5., 5.]])
    views = torch.stack([images, images + torch.tensor([2., 0.]), images - 4],
                        1)
    # of two images: (2, 0) and (-4, -4) each, the mean over both views
    assert Prototypes.of(views, 1).perturbation.tolist() == [20, 16, 16]
    assert torch.equal(own_embeddings(views), images)
    assert Prototypes.of(images, 1).perturbation.numel() == 0
    assert torch.equal(own_embeddings(images), images)


@pytest.fixture
def images():
    """Embeddings of three domains of unlike size and place."""
    return {
        name: torch.randn(count, 3, dtype=torch.float64) + shift
        for name, count, shift in (('day', 20, 0.0), ('night', 10, 6.0),
                                   ('fog', 15, -6.0))
    }


def fitted(images, **settings):
    gate = PrototypeGate(**settings)
    for name, embeddings in images.items():
        gate.fit(name, embeddings)
    return gate


def test_pooled_statistics_are_the_fit_to_all_images(images):
    gate = fitted(images)
    pooled = merge_prototypes([gate.state('day'), gate.state('night')], True)
    both = torch.cat([images['day'], images['night']])
    wanted = fitted(dict(both=both)).state('both')
    for key in ('centroids', 'counts', 'scatter'):
        torch.testing.assert_close(pooled[key], wanted[key])


@pytest.mark.parametrize('metric', ['euclidean', 'mahalanobis', 'cosine'])
def test_merged_task_is_as_near_as_the_nearest_of_its_parts(images, metric):
    gate = fitted(images, metric=metric)
    unseen = torch.randn(50, 3) * 5
    before = gate.distances(unseen)
    merged = merge_prototypes([gate.state('day'), gate.state('night')])
    gate.remove('day')
    gate.remove('night')
    gate.load_state('both', merged)
    after = gate.distances(unseen)
    assert gate.expert_names == ('fog', 'both')
    torch.testing.assert_close(after[:, 0], before[:, 2])
    torch.testing.assert_close(after[:, 1], before[:, :2].amin(1))


def test_gates_without_statistics_have_nothing_to_merge():
    assert merge_prototypes([{}, {}]) == {}


def test_statistics_of_another_gate_are_refused(images):
    gate = fitted(images)
    with pytest.raises(ValueError, match="hold .*'mean'.*cannot|cannot.*mean"):
        merge_prototypes([gate.state('day'), dict(mean=torch.zeros(3))])


def test_embeddings_of_two_sizes_are_refused(images):
    gate = fitted(images)
    other = fitted(dict(day=torch.randn(9, 4)))
    with pytest.raises(ValueError, match=r'\[3, 4\] values'):
        merge_prototypes([gate.state('day'), other.state('day')])


def test_counts_and_scatter_are_sums():
    parts = [
        Prototypes(
            torch.tensor([[value]]).double(),
            torch.tensor([count]).double(), torch.tensor([scatter])).state()
        for value, count, scatter in ((0.0, 1.0, 2.0), (4.0, 3.0, 5.0))
    ]
    apart = merge_prototypes(parts)
    assert apart['centroids'].tolist() == [[0.0], [4.0]]
    assert apart['counts'].tolist() == [1.0, 3.0]
    assert apart['scatter'].tolist() == [7.0]
    pooled = merge_prototypes(parts, True)
    # mean 3; one image 3 away, three images 1 away: 9 + 3 more
    assert pooled['centroids'].tolist() == [[3.0]]
    assert pooled['counts'].tolist() == [4.0]
    assert pooled['scatter'].tolist() == [19.0]


def test_perturbations_add_up_where_all_are_known(images):
    gate = fitted(images)
    states = [gate.state('day'), gate.state('night')]
    assert merge_prototypes(states)['perturbation'].numel() == 0
    for state, value in zip(states, (1.0, 2.0)):
        state['perturbation'] = torch.full_like(state['scatter'], value)
    assert (merge_prototypes(states)['perturbation'] == 3).all()


def test_widest_limit_of_the_calibrated_parts_is_kept_with_its_scale(images):
    gate = fitted(dict(images, one=images['fog'][:1]))
    states = [gate.state(name) for name in gate.expert_names]
    widest = max(states[:3], key=lambda state: state['max_distance'])
    merged = merge_prototypes(states)
    for key in ('median_distance', 'max_distance'):
        assert merged[key] == widest[key]
    assert merge_prototypes(states[3:] * 2)['max_distance'].isinf()
