# SPDX-License-Identifier: Apache-2.0
"""What holds for the routing of any images to any experts."""
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmseg_mile.gates.prototype_gate import PrototypeGate

METRICS = ('euclidean', 'cosine', 'mahalanobis')
bounded = settings(
    max_examples=120, deadline=None, derandomize=True, database=None)
gates = st.builds(
    PrototypeGate,
    metric=st.sampled_from(METRICS),
    num_prototypes=st.integers(1, 3),
    top_k=st.integers(1, 4))


def embeddings(least=1):
    """Few values, so that images coincide and distances tie or vanish."""
    row = st.lists(st.integers(-1, 1), min_size=3, max_size=3)
    return st.lists(
        row, min_size=least,
        max_size=6).map(lambda rows: torch.tensor(rows, dtype=torch.float32))


tasks = st.lists(embeddings(), min_size=1, max_size=4)


def fitted(gate, tasks):
    for index, images in enumerate(tasks):
        gate.fit(f'task {index}', images)
    return gate


@bounded
@given(gate=gates, tasks=tasks, images=embeddings())
def test_weights_are_shares_of_the_nearest_experts(gate, tasks, images):
    routing = fitted(gate, tasks).route(images, [None] * len(images))
    assert routing.weights.shape == (len(images), len(tasks))
    assert routing.weights.isfinite().all()
    assert (routing.weights >= 0).all()
    torch.testing.assert_close(routing.weights.sum(1), torch.ones(len(images)))
    assert ((routing.weights > 0).sum(1) <= gate.top_k).all()
    best = routing.distances.gather(1, routing.weights.argmax(1)[:, None])
    torch.testing.assert_close(best, routing.distances.amin(1, True))


@bounded
@given(gate=gates, tasks=tasks, images=embeddings())
def test_distances_are_finite_and_not_negative(gate, tasks, images):
    routing = fitted(gate, tasks).route(images, [None] * len(images))
    distances = routing.distances
    assert distances.isfinite().all() and (distances >= 0).all()
    assert routing.ood_score.isfinite().all()


@bounded
@given(metric=st.sampled_from(METRICS), task=embeddings(), images=embeddings())
def test_of_equal_experts_the_one_learned_first_is_chosen(
        metric, task, images):
    gate = fitted(PrototypeGate(metric), [task, task, task])
    routing = gate.route(images, [None] * len(images))
    assert (routing.weights.argmax(1) == 0).all()


@bounded
@given(gate=gates, task=embeddings(), images=embeddings())
def test_one_expert_gets_every_image(gate, task, images):
    routing = fitted(gate, [task]).route(images, [None] * len(images))
    assert (routing.weights == 1).all()


@bounded
@given(gate=gates, tasks=tasks, images=embeddings())
def test_images_are_routed_the_same_alone_and_together(gate, tasks, images):
    fitted(gate, tasks)
    together = gate.route(images, [None] * len(images))
    for index in range(len(images)):
        alone = gate.route(images[index:index + 1], [None])
        torch.testing.assert_close(alone.weights[0], together.weights[index])


@bounded
@given(metric=st.sampled_from(METRICS), tasks=tasks)
def test_stored_statistics_route_as_the_fitted_ones(metric, tasks):
    gate, again = fitted(PrototypeGate(metric), tasks), PrototypeGate(metric)
    for index in range(len(tasks)):
        again.load_state(f'task {index}', gate.state(f'task {index}'))
    images = torch.cat(tasks)
    assert torch.equal(gate.distances(images), again.distances(images))


@pytest.mark.parametrize('metric', METRICS)
def test_without_an_expert_nothing_is_routed(metric):
    with pytest.raises(ValueError):
        PrototypeGate(metric).route(torch.ones(1, 3), [None])
