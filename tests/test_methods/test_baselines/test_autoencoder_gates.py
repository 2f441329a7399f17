# SPDX-License-Identifier: Apache-2.0
"""Gates that reconstruct, on autoencoders made by hand or fitted."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.gates.embedders import ThumbnailEmbedder
from mmseg_mile.gates.prototype_gate import PrototypeGate
from mmseg_mile.methods.baselines.autoencoder_gates import (
    Autoencoder, AutoencoderGate, ConvAutoencoderGate)

LOW, HALF, HIGH = torch.tensor([-2., 0., 2.]).sigmoid().tolist()

# -- autoencoders ------------------------------------------------------------


def test_autoencoder_without_convolutions_is_its_formula():
    weights = {
        'encoder.weight': torch.tensor([[1., -1]]),
        'encoder.bias': torch.tensor([0.5]),
        'decoder.weight': torch.tensor([[2.], [0.]]),
        'decoder.bias': torch.tensor([0., -1])
    }
    # codes relu(1 - 0 + 0.5) = 1.5 and relu(0 - 1 + 0.5) = 0
    got = Autoencoder((2, 1, 1), (), 1)(weights,
                                        torch.tensor([[1., 0], [0., 1]]))
    torch.testing.assert_close(got,
                               torch.tensor([[3., -1], [0., -1]]).sigmoid())


def test_convolutions_lead_to_the_code_and_back():
    network = Autoencoder((1, 4, 4), (1, ), 1)
    weights = {k: torch.zeros(s) for k, s in network.shapes.items()}
    # each pixel of every other row and column is seen; their sum is the code
    weights['down.0.weight'][0, 0, 1, 1] = 1
    weights['encoder.weight'].fill_(1)
    # the code goes to the first place of the grid, and from there to the
    # pixels that a transposed kernel of 4 with padding 1 reaches
    weights['decoder.weight'][0] = 1
    weights['up.0.weight'].fill_(1)
    image = torch.arange(16.).view(1, 16)
    reached = torch.zeros(4, 4)
    reached[:3, :3] = 0 + 2 + 8 + 10
    torch.testing.assert_close(
        network(weights, image),
        reached.view(1, 16).sigmoid())


# -- routing -----------------------------------------------------------------


def constant(level, max_error=0.001, mean=0.0):
    """An autoencoder that answers ``sigmoid(level)`` to everything."""
    return {
        'encoder.weight': torch.zeros(1, 2),
        'encoder.bias': torch.zeros(1),
        'decoder.weight': torch.zeros(2, 1),
        'decoder.bias': torch.full((2, ), level),
        'mean': torch.full((2, ), mean),
        'deviation': torch.ones(2),
        'max_error': torch.tensor(max_error)
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


def test_each_image_goes_to_the_least_mean_squared_error(gate):
    routing = route(gate, (-2., -2.), (2., -2.), (9., 0.5))
    error = (HIGH - LOW)**2
    torch.testing.assert_close(
        routing.distances[:2],
        torch.tensor([[0, error], [error / 2, error / 2]]))
    assert routing.expert_names == ('low', 'high')
    # of equal errors, the expert learned first
    assert routing.weights.tolist() == [[1, 0], [1, 0], [0, 1]]
    gate.remove('low')
    assert route(gate, (-2., -2.)).weights.tolist() == [[1]]
    gate.remove('high')
    with pytest.raises(ValueError, match='learned no task yet'):
        route(gate, (-2., -2.))


def test_image_beyond_the_errors_of_every_expert_is_flagged(gate):
    gate.load_state('high', constant(2., max_error=0.2))
    # (1/2 - HIGH)^2 = 0.145 is no larger error than 'high' has had
    assert (HALF - HIGH)**2 < 0.2
    flags = route(gate, (0., 0.), (-2., -2.), (-1., -1.)).ood
    assert flags.tolist() == [False, False, True]


def test_nearest_expert_is_that_of_the_least_mean_error(gate):
    assert gate.nearest(torch.tensor([[1., 1.], [-0.1, -0.1]])) == 'high'
    assert gate.nearest(torch.tensor([[0.1, 0.1], [-1., -1.]])) == 'low'


# -- learning ----------------------------------------------------------------

GATES = dict(
    linear=lambda **kw: AutoencoderGate(hidden=6, num_steps=200, **kw),
    conv=lambda **kw: ConvAutoencoderGate(
        image_shape=(2, 2, 2), channels=(8, ), hidden=6, num_steps=200, **kw))
by_gate = pytest.mark.parametrize('make', GATES.values(), ids=list(GATES))


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


@by_gate
def test_new_images_go_to_the_task_that_they_are_like(make):
    gate, new = fitted(make(), bright_or_dark(0)), bright_or_dark(1)
    for index, embeddings in enumerate(new.values()):
        routing = gate.route(embeddings, [None] * 40)
        assert (routing.weights.argmax(1) == index).all()
        # an image is routed the same alone
        alone = [gate.distances(row) for row in embeddings.split(1)]
        assert torch.equal(routing.distances, torch.cat(alone))


@by_gate
def test_largest_error_is_the_quantile_of_the_training_errors(make):
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
    assert all(torch.equal(again[k], v) for k, v in first.items())
    other = fitted(make(seed=1), images).state('dark')
    assert not torch.equal(other['encoder.weight'], first['encoder.weight'])


@by_gate
def test_all_tasks_are_standardised_by_the_first_one(make):
    images = bright_or_dark(0)
    gate = fitted(make(), images)
    first = gate.state('bright')
    groups = images['bright'].view(40, len(first['mean']), -1)
    torch.testing.assert_close(first['mean'], groups.mean((0, 2)))
    torch.testing.assert_close(first['deviation'],
                               groups.std((0, 2), correction=0))
    # and by it still when it is gone, or learned again
    gate.remove('bright')
    gate.fit('fog', images['bright'] + 1)
    gate.fit('dark', images['bright'] + 1)
    assert gate.expert_names == ('dark', 'fog')
    for name in gate.expert_names:
        assert torch.equal(gate.state(name)['mean'], first['mean'])
    assert torch.equal(*(gate.state(n)['encoder.weight']
                         for n in gate.expert_names))


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


def test_convolutions_fit_the_embedder_as_both_are_by_default():
    gate = ConvAutoencoderGate(num_steps=1)
    gate.fit('day', ThumbnailEmbedder()(None, torch.randn(2, 3, 96, 128)))
    # 48x64 halved three times, in 32 channels
    assert gate.state('day')['encoder.weight'].shape == (64, 32 * 6 * 8)


# -- what is stored ----------------------------------------------------------


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


@pytest.mark.parametrize('key, value', [
    ('decoder.bias', None),
    ('encoder.weight', torch.zeros(2, 2)),
    ('decoder.bias', torch.tensor([0., torch.nan])),
    ('mean', torch.tensor([0., torch.inf])),
    ('mean', None),
    ('max_error', torch.zeros(2)),
    ('scatter', torch.zeros(3)),
])  # yapf: disable
def test_state_that_no_such_gate_wrote_is_refused(gate, key, value):
    state = {**constant(2.), key: value}
    state = {k: v for k, v in state.items() if v is not None}
    with pytest.raises(ValueError, match=rf"task 'fog' .*'{key}'"):
        gate.load_state('fog', state)
    assert gate.expert_names == ('low', 'high')


def test_state_of_another_gate_or_stream_is_refused(gate):
    prototypes = PrototypeGate()
    prototypes.fit('day', torch.randn(9, 2))
    with pytest.raises(ValueError, match="'day' are not those of this Auto"):
        gate.load_state('day', prototypes.state('day'))
    with pytest.raises(ValueError, match="'fog' was fitted in another stream"):
        gate.load_state('fog', constant(1., mean=0.5))


# -- bad input ---------------------------------------------------------------


@pytest.mark.parametrize('embeddings, message', [
    (None, "'day' gave the gate no images"),
    (torch.zeros(0, 2), "'day' gave the gate no images"),
    (torch.tensor([[0., torch.nan]]), "of task 'day' are not finite"),
    (torch.zeros(1, 3), "of task 'day' have 3 values, those of task 'low' 2"),
])
def test_embeddings_that_teach_nothing_are_refused(gate, embeddings, message):
    with pytest.raises(ValueError, match=message):
        gate.fit('day', embeddings)
    if embeddings is not None and len(embeddings):
        message = message.replace("task 'day'", 'the images')
        with pytest.raises(ValueError, match=message):
            gate.distances(embeddings)


@pytest.mark.parametrize('gate, size, message', [
    (AutoencoderGate(), 100, 'gate.hidden 100 must be less than the 100'),
    (ConvAutoencoderGate(), 48, r'\(3, 48, 64\) has 9216 values, an embedding '
     r"48: use .*'ThumbnailEmbedder', size=\(48, 64\)"),
])
def test_embeddings_that_do_not_fit_are_refused_before_any_training(
        gate, size, message):
    with pytest.raises(ValueError, match=message):
        gate.check_embeddings(torch.randn(4, size))


@pytest.mark.parametrize('kind, options, message', [
    (AutoencoderGate, dict(num_steps=0), 'gate.num_steps must be >= 1, got 0'),
    (AutoencoderGate, dict(batch_size=0), 'gate.batch_size must be >= 1'),
    (AutoencoderGate, dict(lr=0), 'gate.lr must be > 0, got 0'),
    (AutoencoderGate, dict(weight_decay=-1), 'weight_decay must be >= 0'),
    (AutoencoderGate, dict(ood_quantile=0), r'ood_quantile must be in \(0, 1'),
    (AutoencoderGate, dict(hidden=0), 'gate.hidden must be >= 1, got 0'),
    (ConvAutoencoderGate, dict(hidden=0), 'gate.hidden must be >= 1, got 0'),
    (ConvAutoencoderGate, dict(channels=()), 'gate.channels must be >= 1'),
    (ConvAutoencoderGate, dict(channels=(8, 0)), 'gate.channels must be >= 1'),
    (ConvAutoencoderGate, dict(image_shape=(3, 48, 60)), r'= 8, got \(3, 48'),
    (ConvAutoencoderGate, dict(image_shape=(48, 64)), 'channels, height and'),
    (ConvAutoencoderGate, dict(image_shape=(0, 8, 8)), r'got \(0, 8, 8\)'),
])
def test_wrong_value_is_refused_by_name(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)
