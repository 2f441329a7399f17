# SPDX-License-Identifier: Apache-2.0
"""Gates that reconstruct, on autoencoders that were made by hand or fitted."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.gates.prototype_gate import PrototypeGate
from mmseg_mile.methods.baselines.autoencoder_gates import (
    AutoencoderGate, ConvAutoencoderGate)

LOW, HALF, HIGH = torch.tensor([-2., 0., 2.]).sigmoid().tolist()


def constant(level, reach=0.001, mean=0.0):
    """An autoencoder that answers ``sigmoid(level)`` to everything."""
    return {
        'encoder.weight': torch.zeros(1, 2),
        'encoder.bias': torch.zeros(1),
        'decoder.weight': torch.zeros(2, 1),
        'decoder.bias': torch.full((2, ), level),
        'mean': torch.full((2, ), mean),
        'deviation': torch.ones(2),
        'reach': torch.tensor(reach)
    }


@pytest.fixture
def gate():
    """Two experts, for values of -2 and for values of 2."""
    gate = AutoencoderGate(hidden=1)
    gate.load_state('low', constant(-2.))
    gate.load_state('high', constant(2.))
    return gate


def route(gate, *points):
    return gate.route(torch.tensor(points), [None] * len(points))


def bright_or_dark(seed):
    """Images of two tasks: stripes of any contrast, of two directions."""
    noise = torch.Generator().manual_seed(seed)
    stripes = dict(
        bright=(3., torch.tensor([1., -1, 1, -1, 1, -1, 1, -1])),
        dark=(-3., torch.tensor([1., 1, -1, -1, 1, 1, -1, -1])))
    return {
        name:
        level + torch.randn(40, 1, generator=noise) * pattern +
        0.1 * torch.randn(40, 8, generator=noise)
        for name, (level, pattern) in stripes.items()
    }


def fitted(gate, images):
    for name, embeddings in images.items():
        gate.fit(name, embeddings)
    return gate


GATES = dict(
    linear=lambda **kw: AutoencoderGate(hidden=6, num_steps=200, **kw),
    conv=lambda **kw: ConvAutoencoderGate(
        image_shape=(2, 2, 2), channels=(8, ), hidden=6, num_steps=200, **kw))
by_gate = pytest.mark.parametrize('make', GATES.values(), ids=list(GATES))

# -- routing ----------------------------------------------------------------


def test_distance_is_the_mean_squared_error(gate):
    routing = route(gate, (-2., -2.), (2., -2.))
    error = (HIGH - LOW)**2
    torch.testing.assert_close(
        routing.distances, torch.tensor([[0, error], [error / 2, error / 2]]))
    assert routing.expert_names == ('low', 'high')


def test_each_image_goes_to_the_least_error(gate):
    routing = route(gate, (-1., -3.), (9., 0.5), (-0.1, 0.05))
    assert routing.weights.tolist() == [[1, 0], [0, 1], [1, 0]]


def test_of_equal_errors_the_expert_learned_first_is_chosen(gate):
    gate.load_state('like high', constant(2.))
    assert route(gate, (2., 2.)).weights.tolist() == [[0, 1, 0]]


def test_image_beyond_the_reach_of_every_expert_is_unfamiliar(gate):
    gate.load_state('high', constant(2., reach=0.2))
    # (1/2 - HIGH)^2 = 0.145 is within the reach of 'high'
    assert (HALF - HIGH)**2 < 0.2
    flags = route(gate, (0., 0.), (-2., -2.), (-1., -1.)).ood
    assert flags.tolist() == [False, False, True]


def test_nearest_expert_is_that_of_the_least_mean_error(gate):
    assert gate.nearest(torch.tensor([[1., 1.], [-0.1, -0.1]])) == 'high'
    assert gate.nearest(torch.tensor([[0.1, 0.1], [-1., -1.]])) == 'low'


def test_distances_between_prototypes_are_not_known(gate):
    assert gate.prototype_distances() is None


def test_image_is_routed_the_same_alone_and_among_others():
    images = bright_or_dark(0)
    gate = fitted(GATES['linear'](), images)
    together = gate.distances(images['dark'])
    alone = torch.cat([gate.distances(row) for row in images['dark'].split(1)])
    assert torch.equal(together, alone)


def test_forgotten_task_gets_no_image(gate):
    gate.remove('low')
    routing = route(gate, (-2., -2.))
    assert routing.expert_names == ('high', ) and routing.distances.shape == (
        1, 1)


def test_gate_without_a_task_is_refused():
    with pytest.raises(ValueError, match='learned no task yet'):
        route(AutoencoderGate(), (0., 0.))


# -- learning ---------------------------------------------------------------


@by_gate
def test_new_images_go_to_the_task_that_they_are_like(make):
    gate, new = fitted(make(), bright_or_dark(0)), bright_or_dark(1)
    for index, embeddings in enumerate(new.values()):
        chosen = gate.route(embeddings, [None] * 40).weights.argmax(1)
        assert (chosen == index).all()


@by_gate
def test_training_lowers_the_error(make):
    images = bright_or_dark(0)
    few, many = make(), make()
    few.num_steps = 1
    for gate in (few, many):
        gate.fit('bright', images['bright'])
    error = many.distances(images['bright']).mean()
    assert error < 0.9 * few.distances(images['bright']).mean()


@by_gate
def test_reach_is_the_quantile_of_the_training_errors(make):
    images = bright_or_dark(0)['bright']
    gate = fitted(make(ood_quantile=0.75), dict(bright=images))
    # a quarter of 40 images lies beyond
    assert gate.route(images, [None] * 40).ood.sum() == 10


@by_gate
def test_same_images_give_the_same_bits_whatever_else_runs(make):
    images = bright_or_dark(0)
    first = fitted(make(), images).state('dark')
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
            again = fitted(make(), images).state('dark')
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), before)
    assert set(again) == set(first)
    assert all(torch.equal(again[k], first[k]) for k in first)
    assert not any(v.requires_grad for v in first.values())


def test_other_seed_gives_other_weights():
    images = bright_or_dark(0)
    mine, other = (
        fitted(GATES['linear'](seed=seed), images).state('dark')
        for seed in (0, 1))
    assert not torch.equal(mine['encoder.weight'], other['encoder.weight'])


def test_all_tasks_are_standardised_by_the_first_one():
    images = bright_or_dark(0)
    gate = fitted(GATES['linear'](), images)
    bright, dark = gate.state('bright'), gate.state('dark')
    torch.testing.assert_close(bright['mean'], images['bright'].mean(0))
    torch.testing.assert_close(bright['deviation'],
                               images['bright'].std(0, correction=0))
    assert torch.equal(dark['mean'], bright['mean'])
    # and by it still when it is gone
    gate.remove('bright')
    gate.fit('fog', images['bright'] + 1)
    assert torch.equal(gate.state('fog')['mean'], bright['mean'])


def test_channels_of_images_have_one_mean_for_all_pixels():
    images = torch.randn(40, 8)
    gate = fitted(GATES['conv'](), dict(day=images))
    torch.testing.assert_close(
        gate.state('day')['mean'],
        images.view(40, 2, 4).mean((0, 2)))


@by_gate
@pytest.mark.parametrize('images', [
    torch.zeros(1, 8),
    torch.ones(5, 8),
    torch.full((5, 8), 1e30),
    torch.randn(5, 8) * torch.tensor([1e6, 1e-6] * 4),
], ids=['one', 'constant', 'huge', 'scales'])  # yapf: disable
def test_nothing_overflows(make, images):
    gate = fitted(make(), dict(day=images, night=-images))
    distances = gate.distances(torch.cat([images, torch.randn(3, 8)]))
    assert distances.isfinite().all() and (distances <= 1).all()
    assert all(v.isfinite().all() for v in gate.state('night').values())


def test_fitting_again_replaces_the_autoencoder():
    images = bright_or_dark(0)
    gate = fitted(GATES['linear'](), images)
    gate.fit('bright', images['dark'])
    assert gate.expert_names == ('bright', 'dark')
    assert torch.equal(
        gate.state('bright')['encoder.weight'],
        gate.state('dark')['encoder.weight'])


# -- what is stored -----------------------------------------------------------


@by_gate
def test_stored_weights_route_as_the_fitted_ones(make):
    images = bright_or_dark(0)
    gate, again = fitted(make(), images), make()
    for name in images:
        again.load_state(name, gate.state(name))
    assert again.expert_names == gate.expert_names
    routing, same = (
        g.route(images['dark'], [None] * 40) for g in (gate, again))
    for field in ('weights', 'distances', 'ood'):
        assert torch.equal(getattr(routing, field), getattr(same, field))


def broken(**changes):
    state = {**constant(2.), **changes}
    return {k: v for k, v in state.items() if v is not None}


@pytest.mark.parametrize('state, named', [
    (broken(**{'decoder.bias': None}), 'decoder.bias'),
    (broken(**{'encoder.weight': torch.zeros(2, 2)}), 'encoder.weight'),
    (broken(**{'decoder.bias': torch.tensor([0., torch.nan])}),
     'decoder.bias'),
    (broken(mean=torch.tensor([0., torch.inf])), 'mean'),
    (broken(mean=None), 'mean'),
    (broken(mean=torch.zeros(3)), 'decoder.bias'),
    (broken(reach=torch.zeros(2)), 'reach'),
    (broken(scatter=torch.zeros(3)), 'scatter'),
])  # yapf: disable
def test_state_that_no_such_gate_wrote_is_refused(gate, state, named):
    with pytest.raises(ValueError, match=rf"task 'fog' .*'{named}'"):
        gate.load_state('fog', state)
    assert gate.expert_names == ('low', 'high')


def test_gates_of_different_kinds_refuse_each_others_statistics(gate):
    prototypes = PrototypeGate()
    prototypes.fit('day', torch.randn(9, 2))
    with pytest.raises(ValueError, match="'day' are not those of this Auto"):
        gate.load_state('day', prototypes.state('day'))
    with pytest.raises(ValueError, match="'low' are no prototypes"):
        prototypes.load_state('low', gate.state('low'))


def test_autoencoders_of_two_streams_cannot_be_compared(gate):
    with pytest.raises(ValueError, match="'fog' was fitted in another stream"):
        gate.load_state('fog', constant(1., mean=0.5))


# -- bad input ----------------------------------------------------------------


@pytest.mark.parametrize('images', [None, torch.zeros(0, 8)])
def test_task_without_images_is_refused(images):
    with pytest.raises(ValueError, match="'day' gave the gate no images"):
        GATES['linear']().fit('day', images)


def test_embeddings_that_are_not_finite_are_refused(gate):
    bad = torch.tensor([[0., torch.nan]])
    with pytest.raises(ValueError, match='of the images are not finite'):
        gate.distances(bad)
    with pytest.raises(ValueError, match="of task 'fog' are not finite"):
        gate.fit('fog', bad)


def test_embeddings_of_another_size_are_refused(gate):
    with pytest.raises(ValueError, match='have 3 values, those of task .low'):
        route(gate, (0., 0., 0.))


@pytest.mark.parametrize('options, message', [
    (dict(num_steps=0), 'gate.num_steps must be >= 1, got 0'),
    (dict(batch_size=0), 'gate.batch_size must be >= 1, got 0'),
    (dict(lr=0), 'gate.lr must be > 0, got 0'),
    (dict(weight_decay=-1), 'gate.weight_decay must be >= 0, got -1'),
    (dict(ood_quantile=0), r'ood_quantile must be in \(0, 1\]'),
])  # yapf: disable
def test_wrong_value_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        AutoencoderGate(**options)
