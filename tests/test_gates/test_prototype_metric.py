# SPDX-License-Identifier: Apache-2.0
"""All prototypes at once, against one task at a time."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.gates.prototype_gate import (PrototypeMetric, Whitening,
                                             shared_whitening)
from mmseg_mile.gates.prototypes import Prototypes, pack, unpack

SIZE = 6
metrics = pytest.mark.parametrize('shrinkage', [None, 0.1, 1.0])


def draw(num, shift=0.0):
    """Draw embeddings whose dimensions go together."""
    mixing = torch.linspace(-1, 2, SIZE * SIZE).view(SIZE, SIZE).sin() + 0.5
    return (torch.randn(num, SIZE) @ mixing + shift).double()


def metric_of(tasks, shrinkage):
    """Add all tasks."""
    metric = PrototypeMetric(shrinkage)
    for name, prototypes in tasks.items():
        metric[name] = prototypes
    return metric


@pytest.fixture
def tasks():
    """Five tasks with one to five prototypes."""
    return {
        name: Prototypes.of(draw(40 + index, index), index + 1)
        for index, name in enumerate('abcde')
    }


def plain_precision(tasks, shrinkage):
    """Invert the shrunk within-task covariance, with plain loops."""
    if shrinkage is None:
        return torch.eye(SIZE).double()
    total = torch.zeros(SIZE, SIZE).double()
    count = 0.0
    for task in tasks.values():
        total += unpack(task.scatter, SIZE)
        count += float(task.counts.sum())
    covariance = total / count
    diagonal = covariance.diagonal().diag()
    return torch.linalg.inv((1 - shrinkage) * covariance +
                            shrinkage * diagonal)


@metrics
def test_distances_equal_those_of_one_task_at_a_time(tasks, shrinkage):
    precision, x = plain_precision(tasks, shrinkage), draw(9, 2.0)
    wanted = torch.stack([
        torch.stack([(point - centre) @ precision @ (point - centre)
                     for centre in task.centroids]).min().sqrt()
        for point in x for task in tasks.values()
    ]).view(9, 5)  # yapf: disable
    torch.testing.assert_close(
        metric_of(tasks, shrinkage).distances(x), wanted)


@metrics
def test_typical_distance_is_that_of_the_tasks_own_images(shrinkage):
    images = {'a': draw(30), 'b': draw(50, 4.0)}
    tasks = {n: Prototypes.of(x, 1) for n, x in images.items()}
    metric = metric_of(tasks, shrinkage)
    wanted = [
        metric.distances(images[name])[:, index].square().mean().sqrt()
        for index, name in enumerate('ab')
    ]
    # the scatter is kept in single precision
    torch.testing.assert_close(
        metric.typical, torch.stack(wanted), rtol=1e-6, atol=0)


@metrics
def test_task_outside_counts_in_the_covariance(tasks, shrinkage):
    new = Prototypes.of(draw(20, 9.0), 2)
    inside = metric_of({**tasks, 'new': new}, shrinkage)
    x = draw(7, 9.0)
    wanted = inside.distances(x)[:, -1] / inside.typical[-1]
    outside = metric_of(tasks, shrinkage)
    torch.testing.assert_close(outside.relative_distances(x, new), wanted)
    assert outside.names == tuple('abcde')


def test_first_task_may_be_measured_before_it_is_added():
    new, x = Prototypes.of(draw(20), 1), draw(7)
    alone = metric_of({'new': new}, 0.1)
    torch.testing.assert_close(
        PrototypeMetric(0.1).relative_distances(x, new),
        alone.distances(x)[:, 0] / alone.typical)


@metrics
def test_adding_between_distances_equals_adding_all_at_once(tasks, shrinkage):
    x, metric = draw(5), PrototypeMetric(shrinkage)
    for name, task in tasks.items():
        metric[name] = task
        metric.distances(x)
    at_once = metric_of(tasks, shrinkage)
    assert torch.equal(metric.distances(x), at_once.distances(x))
    assert torch.equal(metric.typical, at_once.typical)


@metrics
def test_removed_task_leaves_nothing_behind(tasks, shrinkage):
    x, metric = draw(5), metric_of(tasks, shrinkage)
    metric.distances(x)
    # huge against the others: subtracting its scatter would show
    metric['huge'] = Prototypes.of(1e9 * draw(20), 1)
    metric.distances(x)
    del metric['huge']
    before = metric_of(tasks, shrinkage)
    assert torch.equal(metric.distances(x), before.distances(x))


@metrics
def test_relearned_task_replaces_its_statistics(tasks, shrinkage):
    x, metric = draw(5), metric_of(tasks, shrinkage)
    metric.distances(x)
    again = Prototypes.of(draw(30, 5.0), 1)
    metric['b'] = again
    wanted = metric_of({**tasks, 'b': again}, shrinkage)
    assert metric.names == tuple('abcde')
    assert torch.equal(metric.distances(x), wanted.distances(x))


def test_covariance_is_factored_once_for_many_tasks(tasks, monkeypatch):
    calls, plain = [], torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, 'cholesky_ex', lambda *a:
                        (calls.append(1), plain(*a))[1])
    metric = metric_of(tasks, 0.1)
    assert calls == []
    metric.distances(draw(3))
    metric.distances(draw(3))
    metric.typical
    assert calls == [1]


@pytest.mark.parametrize('shrinkage', [None, 0.1])
def test_equal_tasks_are_equally_far_bit_for_bit(shrinkage):
    # of a size at which matrix products are blocked
    x = torch.randn(9, 101).double()
    centre = torch.randn(20, 101)
    tasks = {
        str(i): Prototypes.of(centre if i % 3 == 0 else centre + i, 1)
        for i in range(31)
    }
    distances = metric_of(tasks, shrinkage).distances(x)[:, ::3]
    assert (distances == distances[:, :1]).all()


@pytest.mark.parametrize('shrinkage', [None, 0.1])
def test_point_on_a_prototype_is_at_distance_zero(shrinkage):
    tasks = {str(i): Prototypes.of(torch.randn(30, 101), 2) for i in range(9)}
    x = torch.cat([t.centroids for t in tasks.values()])
    distances = metric_of(tasks, shrinkage).distances(x)
    assert (distances[torch.arange(18), torch.arange(18) // 2] == 0).all()


def test_distance_is_to_the_nearest_prototype():
    corners = torch.tensor([[0., 0], [0, 2], [10, 0], [10, 2]])
    metric = metric_of({'a': Prototypes.of(corners, 2)}, None)
    x = torch.tensor([[1., 1], [10, 4]]).double()
    assert metric.distances(x).tolist() == [[1], [3]]


def precision_of(*tasks, shrinkage):
    """Square the whitening that tasks share."""
    matrix = shared_whitening(
        sum(t.scatter.double() for t in tasks),
        sum(t.num_images for t in tasks), tasks[0].size, shrinkage).matrix
    return matrix.T @ matrix


def test_scatter_within_tasks_is_pooled():
    # tasks far apart, each spread by one along its own axis
    one = Prototypes.of(torch.tensor([[-1., 0], [1, 0]]), 1)
    two = Prototypes.of(torch.tensor([[50., 49], [50, 51]]), 1)
    # (2 + 0) / 4 along each axis
    torch.testing.assert_close(
        precision_of(one, two, shrinkage=0.1),
        torch.diag(torch.tensor([2., 2.]).double()))


def test_shrinkage_weakens_correlation_only():
    line = Prototypes.of(torch.tensor([[-1., -1], [1, 1]]), 1)
    covariance = torch.tensor([[1.0, 0.5], [0.5, 1.0]]).double()
    torch.testing.assert_close(
        precision_of(line, shrinkage=0.5), covariance.inverse())


@pytest.mark.parametrize('images', [[[-1., 3], [1, 3]], [[1., 1]]])
def test_feature_without_spread_divides_by_no_zero(images):
    flat = Prototypes.of(torch.tensor(images), 1)
    assert precision_of(flat, shrinkage=0.1).isfinite().all()


def test_too_little_shrinkage_is_refused():
    line = Prototypes.of(torch.tensor([[-1., -1], [1, 1]]), 1)
    with pytest.raises(ValueError, match='gate.shrinkage 1e-20 is too small'):
        precision_of(line, shrinkage=1e-20)


def test_packed_precision_weighs_a_packed_scatter():
    whitening = Whitening.of(SIZE, torch.randn(SIZE, SIZE).double())
    scatter = draw(20).T.cov()
    precision = whitening.matrix.T @ whitening.matrix
    torch.testing.assert_close(whitening.precision @ pack(scatter),
                               (precision * scatter).sum())
