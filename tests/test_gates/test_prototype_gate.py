# SPDX-License-Identifier: Apache-2.0
"""The gate on 2-D embeddings, where the answer can be seen."""
from __future__ import annotations

import itertools

import pytest
import torch

from mmseg_mile.gates.prototype_gate import PrototypeGate, oas_shrinkage
from mmseg_mile.gates.prototypes import unpack

METRICS = ('euclidean', 'cosine', 'mahalanobis')
PERTURBED = dict(metric='mahalanobis', perturbation_weight=0.25)


def cloud(x, y, spread=(1.0, 1.0), num=200):
    """Draw embeddings around a point."""
    return torch.tensor([x, y]) + torch.randn(num, 2) * torch.tensor(spread)


def gate_of(tasks, **options):
    """Fit a gate on {name: embeddings}."""
    gate = PrototypeGate(**options)
    for name, embeddings in tasks.items():
        gate.fit(name, embeddings)
    return gate


def route(gate, *points):
    """Route 2-D points."""
    return gate.route(torch.tensor(points).float(), [None] * len(points))


def chosen(gate, *points):
    """Name the expert of each point."""
    routing = route(gate, *points)
    return [routing.top_expert(i) for i in range(len(points))]


@pytest.mark.parametrize('metric', METRICS)
def test_image_goes_to_the_task_it_lies_in(metric):
    gate = gate_of(
        dict(right=cloud(10, 0), up=cloud(0, 10), left=cloud(-10, 0)),
        metric=metric)
    assert chosen(gate, (9, 1), (1, 9), (-8, -1)) == ['right', 'up', 'left']


def test_euclidean_distance_is_that_to_the_mean():
    gate = gate_of(
        dict(a=torch.tensor([[0., 0], [0, 2]]), b=torch.tensor([[3., 5]])),
        metric='euclidean')
    # means (0, 1) and (3, 5)
    distances = route(gate, (0., 1.), (3., 1.)).distances
    torch.testing.assert_close(distances, torch.tensor([[0., 5], [3, 4]]))


def test_cosine_compares_directions_only():
    gate = gate_of(
        dict(right=torch.tensor([[1., 0]]), up=torch.tensor([[0., 1]])),
        metric='cosine')
    assert chosen(gate, (100., 90.), (0.01, 0.02)) == ['right', 'up']


def test_nearer_direction_wins_however_wide_a_task_is():
    # the mean of the wide one is 0.72 long
    angles = dict(tight=[0.] * 4, wide=[40., 80., 120., 160.], at=[48.])
    points = {
        name: torch.tensor(values).deg2rad()[:, None]
        for name, values in angles.items()
    }
    points = {n: torch.cat([x.cos(), x.sin()], 1) for n, x in points.items()}
    image = points.pop('at')
    gate = gate_of(points, metric='cosine', top_k=2)
    routing = gate.route(image, [None])
    # 48 and 52 degrees away; the chord of an angle is 2 sin(angle / 2)
    wanted = 2 * torch.tensor([[24., 26.]]).deg2rad().sin()
    torch.testing.assert_close(routing.distances, wanted)
    assert routing.top_expert(0) == 'tight'
    own = gate.distances(points['wide'])[:, 1]
    torch.testing.assert_close(gate.mean_distances()[1, 1],
                               own.square().mean().sqrt())


def test_mahalanobis_counts_directions_of_common_spread_little():
    tasks = dict(
        a=cloud(0, 0, (10, 0.1), 2000), b=cloud(8, 1, (10, 0.1), 2000))
    # nearer to b along x, which means nothing here; of a's height
    assert chosen(gate_of(tasks, metric='mahalanobis'), (8., 0.)) == ['a']
    assert chosen(gate_of(tasks, metric='euclidean'), (8., 0.)) == ['b']


def test_mahalanobis_distance_is_in_units_of_the_spread():
    gate = gate_of(
        dict(a=torch.tensor([[-2., 0], [2, 0], [0, 1], [0, -1]])),
        metric='mahalanobis')
    # variances 8 / 4 and 2 / 4
    distances = route(gate, (2., 0.), (0., 2.)).distances
    torch.testing.assert_close(distances,
                               torch.tensor([[2 / 2**0.5], [2 / 0.5**0.5]]))


def test_several_prototypes_follow_a_task_of_several_clusters():
    tasks = dict(
        ends=torch.cat([cloud(-10, 0), cloud(10, 0)]), middle=cloud(0, 3))
    points = ((-9., 0.), (9., 1.), (0., 2.))
    ends = gate_of(tasks, metric='euclidean', num_prototypes=2)
    assert chosen(ends, *points) == ['ends', 'ends', 'middle']
    means = route(gate_of(tasks, metric='euclidean'), *points).distances
    assert means[0, 0] > 5 > route(ends, *points).distances[0, 0]


@pytest.mark.parametrize('top_k', [1, 2, 3, 9])
@pytest.mark.parametrize('metric', METRICS)
def test_weights_of_the_chosen_experts_sum_to_one(metric, top_k):
    gate = gate_of(
        dict(a=cloud(5, 0), b=cloud(0, 5), c=cloud(-5, 0)),
        metric=metric,
        top_k=top_k)
    weights = route(gate, (4., 1.), (1., 1.), (0.5, 5.)).weights
    assert ((weights > 0).sum(1) == min(top_k, 3)).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(3))


def test_weights_fall_with_the_distance_in_units_of_the_nearest_spread():
    square = torch.tensor([[1., 0], [-1, 0], [0, 1], [0, -1]])
    tasks = dict(a=2 * square, b=7 * square + torch.tensor([10., 0]))
    gate = gate_of(tasks, metric='euclidean', top_k=2, temperature=0.5)
    # distances 4 and 6, a's own images lie at 2: softmax(0, -2 / (0.5 * 2))
    torch.testing.assert_close(
        route(gate, (4., 0.)).weights,
        torch.tensor([[0., -2.]]).softmax(1))


def test_higher_temperature_evens_the_weights_out():
    tasks = dict(a=cloud(0, 0), b=cloud(4, 0))
    cold, hot = (
        route(gate_of(tasks, top_k=2, temperature=t), (1., 0.)).weights[0, 0]
        for t in (0.1, 10.0))
    assert 0.5 < hot < 0.6 < 0.99 < cold


@pytest.mark.parametrize('metric', ['euclidean', 'mahalanobis'])
def test_tie_goes_to_the_task_learned_first(metric):
    tasks = {name: cloud(i * 50, 0) for i, name in enumerate('abcdefgh')}
    tied = {name: torch.tensor([[1., 2], [3, 4]]) for name in 'wxyz'}
    gate = gate_of({**tasks, **tied}, metric=metric)
    assert chosen(gate, (2., 3.)) == ['w']


def test_tie_of_two_experts_is_shared_evenly():
    tied = {name: torch.tensor([[1., 2], [3, 4]]) for name in 'xyz'}
    weights = route(gate_of(tied, top_k=2), (9., 9.)).weights
    assert weights.tolist() == [[0.5, 0.5, 0]]


@pytest.mark.parametrize('metric', METRICS)
def test_image_on_a_prototype_has_distance_zero(metric):
    gate = gate_of(
        dict(a=torch.tensor([[1., 0]]), b=torch.tensor([[0., 1]])),
        metric=metric,
        top_k=2)
    routing = route(gate, (1., 0.))
    assert routing.distances[0, 0] == 0
    assert routing.weights.isfinite().all()
    assert routing.top_expert(0) == 'a'


def test_only_expert_gets_everything():
    gate = gate_of(dict(a=cloud(0, 0)))
    assert route(gate, (99., 0.)).weights.tolist() == [[1]]


def test_gate_without_an_expert_is_refused():
    with pytest.raises(ValueError, match='the gate has learned no task yet'):
        route(PrototypeGate(), (0., 0.))


@pytest.mark.parametrize('metric', METRICS)
def test_order_of_the_tasks_does_not_matter(metric):
    tasks = dict(a=cloud(4, 0, (1, 3)), b=cloud(0, 4, (2, 1)), c=cloud(-4, 0))
    points = torch.randn(20, 2) * 5
    tables = []
    for names in itertools.permutations(tasks):
        gate = gate_of({n: tasks[n] for n in names}, metric=metric)
        table = dict(zip(gate.expert_names, gate.distances(points).T))
        tables.append(torch.stack([table[n] for n in tasks]))
    for table in tables[1:]:
        torch.testing.assert_close(table, tables[0])


def test_removal_undoes_a_fit():
    tasks = dict(a=cloud(4, 0, (1, 3)), b=cloud(0, 4, (2, 1)))
    gate = gate_of(tasks, metric='mahalanobis')
    points = torch.randn(20, 2) * 5
    before, state = gate.distances(points), gate.state('a')
    gate.fit('c', cloud(-4, 0, (5, 5)))
    assert not torch.equal(gate.distances(points)[:, :2], before)
    gate.remove('c')
    assert gate.expert_names == ('a', 'b')
    assert torch.equal(gate.distances(points), before)
    assert all(torch.equal(gate.state('a')[k], state[k]) for k in state)


def test_unknown_task_is_not_removed():
    gate = gate_of(dict(a=cloud(0, 0)))
    with pytest.raises(ValueError, match=r"not learned task 'b'.*\['a'\]"):
        gate.remove('b')


@pytest.mark.parametrize('metric', METRICS)
def test_state_round_trip_routes_bit_for_bit(metric):
    gate = gate_of(
        dict(a=cloud(3, 1, (1, 2)), b=cloud(1, 4)),
        metric=metric,
        num_prototypes=3,
        top_k=2)
    again = PrototypeGate(metric=metric, num_prototypes=3, top_k=2)
    for name in gate.expert_names:
        state = gate.state(name)
        again.load_state(name, state)
    x = torch.randn(50, 2) * 4
    one, two = gate.route(x, [None] * 50), again.route(x, [None] * 50)
    for field in ('weights', 'distances', 'ood', 'ood_score'):
        assert torch.equal(getattr(one, field), getattr(two, field))


@pytest.mark.parametrize('metric', ['euclidean', 'mahalanobis'])
@pytest.mark.parametrize('quantile', [0.8, 0.95])
def test_new_images_of_a_task_are_flagged_as_often_as_asked(metric, quantile):
    # 12 dimensions, so that training images lie much closer than new ones
    tasks = {n: torch.randn(300, 12) + 30 * i for i, n in enumerate('abc')}
    gate = gate_of(tasks, metric=metric, ood_quantile=quantile)
    new = torch.randn(4000, 12) + 30
    flagged = gate.route(new, [None] * 4000).ood.float().mean()
    assert abs(flagged - (1 - quantile)) < 0.04


@pytest.mark.parametrize('metric', METRICS)
def test_far_image_is_flagged_and_near_one_is_not(metric):
    gate = gate_of(
        dict(a=cloud(30, 0), b=cloud(0, 30)), metric=metric, ood_quantile=1.0)
    routing = route(gate, (30., 0.), (0., 31.), (-30., -30.), (60., 70.))
    assert routing.ood.tolist() == [False, False, True, True]


@pytest.mark.parametrize('metric', METRICS)
def test_task_of_one_image_flags_nothing(metric):
    tasks = dict(a=torch.ones(1, 2), b=cloud(-30, -30))
    gate = gate_of(tasks, metric=metric)
    routing = route(gate, (1e6, 1e6), (1., 1.))
    assert routing.top_expert(0) == routing.top_expert(1) == 'a'
    # nothing was calibrated: no NaN, which JSON has not
    assert not routing.ood.any() and routing.ood_score.tolist() == [0, 0]


@pytest.mark.parametrize('metric', ['euclidean', 'mahalanobis'])
def test_far_image_is_flagged_by_fewer_images_than_values(metric):
    tasks = dict(two=torch.randn(2, 8), three=torch.randn(3, 8) + 9)
    gate = gate_of(tasks, metric=metric)
    points = torch.tensor([[0.], [9.], [900.]]).expand(3, 8)
    assert gate.route(points, [None] * 3).ood.tolist() == [False, False, True]


@pytest.mark.parametrize('metric', METRICS)
def test_nearest_is_the_expert_nearest_on_average(metric):
    gate = gate_of(dict(a=cloud(20, 0), b=cloud(0, 20)), metric=metric)
    assert gate.nearest(cloud(4, 15)) == 'b'
    assert gate.nearest(cloud(15, 4)) == 'a'
    assert gate.expert_names == ('a', 'b')


@pytest.mark.parametrize('metric', METRICS)
@pytest.mark.parametrize('use', [
    lambda gate, x: gate.fit('b', x), lambda gate, x: gate.nearest(x),
    lambda gate, x: gate.route(x, [None] * len(x))
])  # yapf: disable
def test_embeddings_of_another_size_are_refused(metric, use):
    gate = gate_of(dict(a=cloud(0, 0)), metric=metric)
    with pytest.raises(ValueError, match="have 3 values, those of task 'a' 2"):
        use(gate, torch.zeros(4, 3))
    assert gate.expert_names == ('a', )


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('use', [
    lambda gate, x: gate.fit('b', x), lambda gate, x: gate.nearest(x),
    lambda gate, x: gate.route(x, [None] * len(x))
])  # yapf: disable
def test_embeddings_that_are_not_finite_are_refused(value, use):
    x = torch.zeros(4, 2)
    x[3, 1] = value
    with pytest.raises(ValueError, match='not finite: check the normalisat'):
        use(gate_of(dict(a=cloud(0, 0))), x)


@pytest.mark.parametrize('embeddings', [None, torch.zeros(0, 2)])
def test_task_without_images_is_refused(embeddings):
    with pytest.raises(ValueError, match="'a' gave the gate no images"):
        PrototypeGate().fit('a', embeddings)


@pytest.mark.parametrize('options, message', [
    (dict(metric='manhattan'), "gate.metric must be one of .*'manhattan'"),
    (dict(num_prototypes=0), 'gate.num_prototypes must be >= 1, got 0'),
    (dict(top_k=0), 'gate.top_k must be >= 1, got 0'),
    (dict(temperature=0), 'gate.temperature must be > 0, got 0'),
    (dict(ood_quantile=1.1), r'quantile must be in \[0.5, 1\], got 1.1'),
    (dict(ood_quantile=0.4), r'quantile must be in \[0.5, 1\], got 0.4'),
    (dict(shrinkage=0), r'gate.shrinkage must be in \(0, 1\], got 0'),
    (dict(perturbation_weight=-1), 'perturbation_weight must be >= 0, got -1'),
    (dict(perturbation_weight=float('inf')), 'perturbation_weight must be >='),
    (dict(perturbations=['light']), 'no effect without gate.perturbation_we'),
    (dict(PERTURBED, perturbations=['blur']), "of .*, got \\('blur',"),
    (dict(PERTURBED, perturbations=[]), 'must be some of'),
    (dict(perturbation_weight=0.25), "which 'euclidean' has not: set it to 0"),
])  # yapf: disable
def test_argument_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PrototypeGate(**options)


def test_distances_between_prototypes_are_those_of_the_means():
    gate = gate_of(
        dict(a=torch.tensor([[0., 0], [0, 2]]), b=torch.tensor([[3., 5]])),
        metric='euclidean')
    # means (0, 1) and (3, 5)
    torch.testing.assert_close(gate.prototype_distances(),
                               torch.tensor([[0., 5], [5, 0]]).double())


def test_distance_between_prototypes_is_averaged_over_their_images():
    # three images at 0 and one at 4, against one at 6: (3 * 6 + 2) / 4; the
    # other way it is the nearest one that counts
    gate = gate_of(
        dict(
            a=torch.tensor([[0., 0], [0, 0], [0, 0], [4, 0]]),
            b=torch.tensor([[6., 0]])),
        metric='euclidean',
        num_prototypes=2)
    torch.testing.assert_close(gate.prototype_distances(),
                               torch.tensor([[0., 5], [2, 0]]).double())


@pytest.mark.parametrize('metric', METRICS)
def test_prototypes_lie_at_distance_zero_of_themselves(metric):
    gate = gate_of(
        dict(a=cloud(3, 0), b=cloud(0, 3)), metric=metric, num_prototypes=3)
    distances = gate.prototype_distances()
    assert not distances.diagonal().any()
    assert (distances + torch.eye(2) > 0).all()


def test_without_a_task_there_are_no_prototypes_to_compare():
    assert PrototypeGate().prototype_distances().shape == (0, 0)


def test_flag_of_an_expert_does_not_depend_on_the_others():
    tasks = dict(a=cloud(4, 0, (1, 3)), b=cloud(0, 40, (9, 1)))
    near_a = cloud(4, 0, (3, 3), 40)
    alone = gate_of(dict(a=tasks['a'])).route(near_a, [None] * 40)
    for names in ('ab', 'ba'):
        gate = gate_of({name: tasks[name] for name in names})
        routing = gate.route(near_a, [None] * 40)
        assert {routing.top_expert(i) for i in range(40)} == {'a'}
        assert torch.equal(routing.ood_score, alone.ood_score)
        gate.remove('b')
        assert torch.equal(
            gate.route(near_a, [None] * 40).ood_score, alone.ood_score)


def test_relearned_task_is_asked_for_what_it_learned_last():
    gate = gate_of(dict(a=cloud(0, 0)))
    assert route(gate, (50., 0.)).ood.tolist() == [True]
    gate.fit('a', cloud(50, 0))
    routing = route(gate, (50., 0.), (0., 0.))
    assert routing.ood.tolist() == [False, True]


def test_image_that_equals_all_of_a_task_is_not_flagged():
    gate = gate_of(dict(a=torch.ones(5, 2)), metric='euclidean')
    routing = route(gate, (1., 1.), (1., 1.001))
    assert routing.ood.tolist() == [False, True]


def test_neighbours_are_weighted_by_mean_distance():
    gate = gate_of(
        dict(a=torch.zeros(2, 2), b=torch.tensor([[4., 0]] * 2)),
        metric='euclidean')
    weights = gate.neighbours(torch.tensor([[1., 0], [1., 0]]))
    assert list(weights) == ['a', 'b']
    # 1 and 3 away; tau 0.4 for distances relative to the nearest
    expected = 1 / (1 + torch.tensor(1 / 1.2 - 1 / 0.4).exp())
    assert weights['a'] == pytest.approx(float(expected))
    assert sum(weights.values()) == pytest.approx(1)


@pytest.mark.parametrize('metric', METRICS)
def test_mean_distance_is_that_of_the_tasks_own_images(metric):
    tasks = dict(a=cloud(9, 1), b=cloud(3, 7), c=cloud(-2, 5, (2., .5)))
    gate = gate_of(tasks, metric=metric)
    found = gate.mean_distances()
    for row, images in enumerate(tasks.values()):
        wanted = gate.distances(images.float()).square().mean(0).sqrt()
        torch.testing.assert_close(found[row], wanted)


def moved(images, *moves):
    """Images and views of them that lie elsewhere, in turn."""
    offsets = torch.tensor(moves).repeat(len(images) // len(moves), 1)
    return torch.stack([images, images + offsets], 1)


@pytest.mark.parametrize('weight, expert', [(0.25, 'a'), (0, 'b')])
def test_direction_in_which_views_move_does_not_choose(weight, expert):
    # tasks of unit spread; light moves their images along x, by ten
    views = {
        name: moved(images, (-10., 0.), (10., 0.))
        for name, images in (('a', cloud(0, 0)), ('b', cloud(6, 6)))
    }
    gate = gate_of(views, metric='mahalanobis', perturbation_weight=weight)
    # of a's height, and as far along x as light may have moved it
    assert chosen(gate, (9., 1.), (0., 0.), (6., 6.)) == [expert, 'a', 'b']


def test_views_change_neither_means_nor_flags():
    images = dict(a=cloud(0, 0), b=cloud(30, 0))
    plain = gate_of(images)
    gate = gate_of({
        n: moved(x, (9., 9.))
        for n, x in images.items()
    }, **PERTURBED)
    points = torch.tensor([[0., 0.], [2., 2.], [4., 4.], [30., 5.]])
    for name in images:
        for key in ('centroids', 'counts', 'scatter', 'max_distance'):
            assert torch.equal(gate.state(name)[key], plain.state(name)[key])
    found, expected = (g.route(points, [None] * 4) for g in (gate, plain))
    assert torch.equal(found.ood_score, expected.ood_score)
    assert found.ood.tolist() == [False, False, True, True]


@pytest.mark.parametrize('use', ['nearest', 'neighbours'])
def test_starts_are_found_by_the_images_alone(use):
    gate = gate_of(dict(a=cloud(0, 0), b=cloud(10, 0)))
    images = cloud(1, 0)
    views = moved(images, (12., 0.))
    assert getattr(gate, use)(views) == getattr(gate, use)(images)


def test_perturbation_survives_storage_and_goes_with_its_task():
    views = {n: moved(cloud(x, x), (x, 1.)) for n, x in (('a', 1.), ('b', 9.))}
    gate, again = gate_of(views, **PERTURBED), PrototypeGate(**PERTURBED)
    for name in views:
        again.load_state(name, gate.state(name))
    points = torch.randn(20, 2)
    assert torch.equal(again.distances(points), gate.distances(points))
    again.remove('b')
    assert torch.equal(
        again.distances(points),
        gate_of(dict(a=views['a']), **PERTURBED).distances(points))


def test_perturbation_asks_for_views():
    assert PrototypeGate().num_views == 1
    assert PrototypeGate(**PERTURBED).num_views == 2


def test_flag_sees_what_breaks_the_rule_of_one_task():
    # y = x in a alone: as far from its mean, but across the line
    x = torch.randn(400, 1) * 3
    line = torch.cat([x, x + 0.1 * torch.randn(400, 1)], 1)
    gate = gate_of(dict(a=line, b=cloud(40, -40, (5, 5), 400)))
    assert route(gate, (3., 3.), (3., -1.)).ood.tolist() == [False, True]


@pytest.mark.parametrize('metric', ['euclidean', 'mahalanobis'])
def test_distances_equal_those_of_plain_loops(metric):
    mixing = torch.linspace(-1, 2, 36).view(6, 6).sin() + 0.5
    images = [torch.randn(40 + i, 6) @ mixing + i for i in range(3)]
    gate = gate_of(dict(zip('abc', images)), metric=metric, num_prototypes=2)
    states = [gate.state(name) for name in 'abc']
    precision = torch.eye(6).double()
    if metric == 'mahalanobis':
        total = sum(unpack(s['scatter'], 6) for s in states).double()
        covariance = total / sum(map(len, images))
        shrunk = 0.9 * covariance + 0.1 * covariance.diagonal().diag()
        precision = shrunk.inverse()
    x = (torch.randn(9, 6) @ mixing).double()
    wanted = torch.stack([
        torch.stack([(point - centre) @ precision @ (point - centre)
                     for centre in state['centroids']]).min().sqrt()
        for point in x for state in states
    ]).view(9, 3)  # yapf: disable
    torch.testing.assert_close(gate.distances(x), wanted)


@pytest.mark.parametrize('metric', ['euclidean', 'mahalanobis'])
def test_equal_tasks_are_equally_far_bit_for_bit(metric):
    # of a size at which matrix products are blocked
    centre = torch.randn(20, 101)
    gate = gate_of(
        {str(i): centre if i % 3 == 0 else centre + i
         for i in range(31)},
        metric=metric)
    distances = gate.distances(torch.randn(9, 101))[:, ::3]
    assert (distances == distances[:, :1]).all()


def test_removed_task_leaves_no_rounding_behind():
    tasks = dict(a=cloud(4, 0, (1, 3)), b=cloud(0, 4, (2, 1)))
    gate, points = gate_of(tasks, metric='mahalanobis'), torch.randn(5, 2)
    before = gate.distances(points)
    # huge against the others: subtracting its scatter would show
    gate.fit('huge', 1e9 * torch.randn(20, 2))
    gate.distances(points)
    gate.remove('huge')
    assert torch.equal(gate.distances(points), before)


def test_covariance_is_factored_once_for_many_images(monkeypatch):
    calls, plain = [], torch.linalg.cholesky_ex
    gate = gate_of(dict(a=cloud(0, 0), b=cloud(9, 9)), metric='mahalanobis')
    monkeypatch.setattr(torch.linalg, 'cholesky_ex', lambda *a:
                        (calls.append(1), plain(*a))[1])
    for _ in range(3):
        gate.distances(torch.randn(3, 2))
    assert calls == [1]


def test_shrinkage_weakens_correlation_only():
    gate = gate_of(
        dict(a=torch.tensor([[-1., -1], [1, 1]])),
        metric='mahalanobis',
        shrinkage=0.5)
    covariance = torch.tensor([[1.0, 0.5], [0.5, 1.0]]).double()
    x = torch.tensor([3., -1.]).double()
    torch.testing.assert_close(
        gate.distances(x[None])[0, 0], (x @ covariance.inverse() @ x).sqrt())


@pytest.mark.parametrize('images',
                         [[[-1., 3], [1, 3]], [[1., 1]], [[1., 2], [1, 2]]])
def test_feature_without_spread_divides_by_no_zero(images):
    gate = gate_of(dict(a=torch.tensor(images)), metric='mahalanobis')
    routing = route(gate, (1., 2.), (5., 5.))
    assert routing.distances.isfinite().all()
    assert routing.ood_score.isfinite().all()


def test_too_little_shrinkage_is_refused():
    gate = gate_of(
        dict(a=torch.tensor([[-1., -1], [1, 1]])),
        metric='mahalanobis',
        shrinkage=1e-20)
    with pytest.raises(ValueError, match='gate.shrinkage 1e-20 is too small'):
        route(gate, (0., 0.))


def test_fewer_images_shrink_more():
    correlation = torch.tensor([[1, 0.8], [0.8, 1]]).double()
    # p = 2: tr(S^2) = 3.28, tr(S)^2 = 4: 4 / ((n + 0) (3.28 - 2))
    assert oas_shrinkage(correlation, 10) == pytest.approx(4 / 12.8)
    assert oas_shrinkage(correlation, 100) == pytest.approx(4 / 128)
    assert oas_shrinkage(correlation, 3) == 1
    assert oas_shrinkage(correlation, 1e9) == 1e-3
    assert oas_shrinkage(torch.eye(5).double(), 1000) == 1


def limit_of(x, quantile, **options):
    """The distance up to which an expert accepts images."""
    gate = gate_of(dict(a=x), ood_quantile=quantile, **options)
    return float(gate.state('a')['max_distance'])


def test_limit_counts_the_new_image_among_the_others():
    x = torch.arange(19.)[:, None]
    limits = [limit_of(x, q) for q in (0.5, 0.9, 0.95, 1.0)]
    assert limits == sorted(limits)
    # of 19, the ceil(20 * 0.95) = 19th is the largest; 0.9 is the 18th
    assert limits[1] < limits[2] == limits[3]


def test_drives_that_were_not_seen_set_the_limit():
    # five drives of frames that hardly differ: with twins in other folds
    # a limit would refuse every further drive
    drives = 10 * torch.randn(5, 1, 4) + 0.1 * torch.randn(5, 8, 4)
    x = drives.flatten(0, 1)
    dealt_out = x.view(5, 8, 4).transpose(0, 1).flatten(0, 1)
    assert limit_of(x, 0.99) > 1.5 * limit_of(dealt_out, 0.99)


def test_scores_run_from_the_median_distance_to_the_limit():
    gate = gate_of(dict(a=cloud(0, 0)))
    state = gate.state('a')
    gate.load_state(
        'a',
        dict(
            state,
            median_distance=torch.tensor(2.).double(),
            max_distance=torch.tensor(8.).double()))
    # the own spread is about one: find points at given distances along x
    x = torch.tensor([[1., 0.]])
    unit = gate.ood_score(x, gate.distances(x)).double()
    # score = log4(d / 2), so d = 2 * 4^score of the unit point
    length = 2 * 4**unit
    center = gate.state('a')['centroids']
    far = gate.ood_score(center + (x - center) * 16 / length,
                         torch.zeros(1, 1))
    torch.testing.assert_close(far, torch.tensor([1.5]).double())
