# SPDX-License-Identifier: Apache-2.0
"""Merged statistics are those of all images seen as one task."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.gates.prototype_gate import PrototypeGate
from mmseg_mile.gates.prototypes import merge_prototypes


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


def test_counts_and_scatter_are_sums():
    parts = [
        dict(
            centroids=torch.tensor([[value]], dtype=torch.float64),
            counts=torch.tensor([count], dtype=torch.float64),
            scatter=torch.tensor([scatter]),
            reach=torch.tensor(reach, dtype=torch.float64))
        for value, count, scatter, reach in ((0.0, 1.0, 2.0, 1.5), (4.0, 3.0,
                                                                    5.0, 2.5))
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
    assert apart['reach'] == pooled['reach'] == 2.5


def test_drifts_add_up_where_all_are_known(images):
    gate = fitted(images)
    states = [gate.state('day'), gate.state('night')]
    assert merge_prototypes(states)['drift'].numel() == 0
    for state, value in zip(states, (1.0, 2.0)):
        state['drift'] = torch.full_like(state['scatter'], value)
    assert (merge_prototypes(states)['drift'] == 3).all()


def test_part_that_was_not_calibrated_does_not_set_the_reach():
    part = dict(
        centroids=torch.zeros(1, 1, dtype=torch.float64),
        counts=torch.ones(1, dtype=torch.float64),
        scatter=torch.zeros(1),
        reach=torch.tensor(torch.inf, dtype=torch.float64))
    known = dict(part, reach=torch.tensor(1.5, dtype=torch.float64))
    assert merge_prototypes([part, known])['reach'] == 1.5
    assert merge_prototypes([part, part])['reach'].isinf()


def test_widest_limit_of_the_parts_is_kept_with_its_scale(images):
    gate = fitted(images)
    states = [gate.state(name) for name in gate.expert_names]
    widest = max(states, key=lambda state: state['limit'])
    merged = merge_prototypes(states)
    for key in ('usual', 'limit'):
        assert merged[key] == widest[key]


def test_part_of_one_image_does_not_set_the_limit(images):
    gate = fitted(dict(day=images['day'], one=images['fog'][:1]))
    states = [gate.state('one'), gate.state('day')]
    assert merge_prototypes(states)['limit'] == states[1]['limit']
    assert merge_prototypes(states[:1] * 2)['limit'].isinf()


def test_old_part_without_a_limit_leaves_the_merged_task_without(images):
    gate = fitted(images)
    old = gate.state('night')
    del old['usual'], old['limit']
    merged = merge_prototypes([gate.state('day'), old])
    assert merged['usual'].isnan() and merged['limit'].isnan()
    assert merged['reach'].isfinite()


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
