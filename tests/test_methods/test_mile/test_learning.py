# SPDX-License-Identifier: Apache-2.0
"""Learning a stream: where experts start, what trains, what stays."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.gates.embedders import perturbed_image
from mmseg_mile.gates.prototype_gate import PrototypeGate
from mmseg_mile.gates.simple_gates import OracleGate
from mmseg_mile.methods.mile import expert_segmentor
from mmseg_mile.methods.mile.lineage import initial_experts
from mmseg_mile.structures import Task

STREAM = ('day', 'night', 'fog')
SAME = ('road', 'sky')


@pytest.fixture
def two(toys, fresh):
    """A model that learned day and night."""
    toys.learn(fresh, 'day')
    toys.learn(fresh, 'night')
    return fresh


def logits(model, toys, name):
    """The scores of one prediction."""
    return toys.predict(model, name)[0].seg_logits.data


# -- training ----------------------------------------------------------------


def test_training_lowers_the_loss(toys, fresh):
    fresh.begin_task(toys.task('day'), toys.loader('day'))
    first = toys.train(fresh, 'day', 1)['loss']
    assert toys.train(fresh, 'day', 10)['loss'] < 0.97 * first


def test_expert_predicts_what_it_predicted_at_the_end_of_training(toys, fresh):
    fresh.begin_task(toys.task('day'), toys.loader('day'))
    toys.train(fresh, 'day')
    fresh.eval()
    inputs = fresh.data_preprocessor(toys.batch('day'))['inputs']
    with torch.no_grad():
        live = fresh.encode_decode(inputs, [{'img_shape': (32, 32)}])
    fresh.end_task(toys.task('day'), toys.loader('day'))
    merged = logits(fresh, toys, 'day')
    torch.testing.assert_close(merged, live[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('adapts', [True, False])
def test_first_task_may_train_the_base(toys, adapts):
    changes = dict() if adapts else dict(lora=None, train_norm=False)
    model = toys.model(
        backbone=dict(
            toys.config['backbone'], base_training='first_task', **changes))
    start = model.backbone.fingerprint()
    toys.learn(model, 'day')
    trained = model.backbone.fingerprint()
    assert trained != start
    day = logits(model, toys, 'day')
    toys.learn(model, 'night')
    assert model.backbone.fingerprint() == trained
    assert torch.equal(logits(model, toys, 'day'), day)
    # who did is known of the experts, in whatever order they are loaded
    other = toys.model(backbone=toys.config['backbone'] | changes)
    other.backbone.load_base(model.backbone.base_state(), trained)
    other.import_experts([model.export_expert(n) for n in ('night', 'day')])
    found = [other.origins[n].get('trained_base') for n in ('night', 'day')]
    assert found == [None, True]


def test_without_adapters_heads_alone_train(heads_only, toys):
    model = heads_only()
    model.begin_task(toys.task('day'), toys.loader('day'))
    trained = {n.split('.')[0] for n, p in model.named_parameters()
               if p.requires_grad}  # yapf: disable
    assert trained == {'decode_head', 'auxiliary_head'}
    toys.train(model, 'day')
    model.eval()
    model.end_task(toys.task('day'), toys.loader('day'))
    inputs = model.data_preprocessor(toys.batch('day'))['inputs']
    head = model.heads.fused(dict(day=1.0), model.device)
    with torch.no_grad(), model.backbone.base():
        wanted = head.predict(
            model.backbone(inputs), [dict(img_shape=(32, 32))], None)
    torch.testing.assert_close(logits(model, toys, 'day'), wanted[0])


@pytest.mark.parametrize(('changes', 'message'), [
    (dict(fusion='mean'), r"model.fusion must be one of .* got 'mean'"),
    (dict(ood_policy='guess'), r"model.ood_policy must be .* got 'guess'"),
    (dict(backbone=dict(type='MobileNetV2')),
     'must be a LoRAExpertBackbone, got MobileNetV2: wrap it'),
])
def test_setting_that_there_is_not_is_refused(toys, changes, message):
    with pytest.raises(ValueError, match=message):
        toys.model(**changes)


# -- where an expert starts --------------------------------------------------


class KnowingGate(OracleGate):
    """Knows which expert is near to the images that it is shown."""

    def nearest(self, embeddings):
        """See :class:`PrototypeGate`."""
        return embeddings

    def neighbours(self, embeddings):
        """See :class:`PrototypeGate`."""
        return {embeddings: .4, 'b': .6}


def start(own, default, earlier=('a', 'b'), gate=None):
    """Where the expert of a new task, near to a, starts."""
    task = Task('new', ('road', ), ((0, 0, 0), ), {}, {}, 1, own)
    looks = []
    found = initial_experts(task, default, earlier, gate or KnowingGate(),
                            lambda: looks.append(1) or 'a')
    asked = (own or default) in ('nearest', 'fused')
    assert len(looks) == (asked and len(earlier) > 0)
    return found


@pytest.mark.parametrize('own, default, expected', [
    (None, 'base', {}),
    (None, 'previous', dict(b=1)),
    (None, 'nearest', dict(a=1)),
    (None, 'fused', dict(a=.4, b=.6)),
    (None, 'a', dict(a=1)),
    ('base', 'previous', {}),
    ('b', 'nearest', dict(b=1)),
])
def test_start_is_that_of_the_task_or_else_of_the_method(
        own, default, expected):
    assert start(own, default) == expected
    if default != 'a' and own != 'b':
        # the first task starts from the base
        assert start(own, default, ()) == {}


@pytest.mark.parametrize('own, default', [('c', 'base'), (None, 'c'),
                                          ('new', 'base')])
def test_start_that_is_unknown_is_refused(own, default):
    with pytest.raises(
            ValueError,
            match=r"init_from of task 'new' .*'previous'.*\('a', 'b'\), "
            f"got '{own or default}'"):
        start(own, default)


@pytest.mark.parametrize('default', ['nearest', 'fused'])
def test_start_by_distance_asks_for_a_gate_with_distances(default):
    with pytest.raises(ValueError, match='OracleGate has not: use Prototype'):
        start(None, default, gate=OracleGate())
    assert start(None, default, (), OracleGate()) == {}


def test_starts_are_checked_before_any_training(fresh, toys):
    tasks = [toys.task('day'), toys.task('night', init_from='fog')]
    with pytest.raises(ValueError, match="of task 'night' .*got 'fog'"):
        fresh.check_stream(tasks)
    fresh.check_stream([toys.task('fog'), *tasks])
    with pytest.raises(ValueError, match="of task 'night' .*got 'fog'"):
        toys.learn(fresh, 'night', init_from='fog')
    assert 'night' not in fresh.backbone.experts
    # where experts are reused, none starts from another
    fresh.reuses_experts = True
    fresh.check_stream(tasks)


def source_of(model, toys, **fields):
    """Begin the task fog; name the experts that its adapter equals."""
    model.begin_task(toys.task('fog', **fields), toys.loader('fog'))
    mine = model.backbone.experts['fog'].lora
    return [
        other for other in model.expert_names if all(
            torch.equal(mine[key], value)
            for key, value in model.backbone.experts[other].lora.items())
    ]


@pytest.mark.parametrize('init_from, source', [
    # fog is bright, like day
    ('previous', 'night'), ('day', 'day'), ('nearest', 'day'),
])  # yapf: disable
def test_start_from_an_expert_copies_it(two, toys, init_from, source):
    assert source_of(two, toys, init_from=init_from) == [source]
    norm, head = two.backbone.experts[source].norm, two.heads[source].state
    mine = two.backbone.experts['fog'].norm
    assert norm and all(torch.equal(mine[k], v) for k, v in norm.items())
    state = two.decode_head.state_dict()
    shared = [k for k in head if not k.startswith('conv_seg')]
    assert shared and all(torch.equal(state[k], head[k]) for k in shared)
    assert list(two.origins['fog']['started_from']) == [source]
    # 'road' is class 0 of fog
    row = two.heads.labels(source).classes.index('road')
    assert torch.equal(state['conv_seg.weight'][0],
                       head['conv_seg.weight'][row])


def test_start_from_the_base_equals_it(two, toys):
    assert two.init_from == 'base' and source_of(two, toys) == []
    lora = two.backbone.experts['fog'].lora
    assert not any(v.any() for k, v in lora.items() if 'lora_B' in k)
    assert not two.origins['fog']['started_from']


def test_training_a_started_expert_leaves_the_old_one_alone(two, toys):
    before = {k: v.clone() for k, v in two.heads['night'].state.items()}
    batches, embed = [], two.embedder
    two.embedder = lambda backbone, x: (batches.append(1), embed(backbone, x))[
        1]
    toys.learn(two, 'fog', init_from='nearest')
    # the start and the gate share one look at the images
    assert len(batches) == len(toys.loader('fog'))
    after = two.heads['night'].state
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_fused_start_mixes_the_neighbours(toys, fresh):
    for name in ('day', 'night'):
        toys.learn(fresh, name, classes=SAME)
    task = toys.task('fog', init_from='fused', classes=SAME)
    fresh.begin_task(task, toys.loader('fog'))
    weights = fresh.gate.neighbours(fresh.embed_images(toys.loader('fog')))
    assert weights['day'] > weights['night'] > 0
    experts, state = fresh.backbone.experts, fresh.decode_head.state_dict()
    for key, value in experts['fog'].norm.items():
        if value.is_floating_point():
            wanted = sum(w * experts[n].norm[key] for n, w in weights.items())
            torch.testing.assert_close(value, wanted)
    for key in ('conv_seg.weight', 'convs.0.conv.weight'):
        wanted = sum(w * fresh.heads[n].state[key] for n, w in weights.items())
        torch.testing.assert_close(state[key], wanted)
    toys.train(fresh, 'fog')
    fresh.end_task(task, toys.loader('fog'))
    assert fresh.expert_names == STREAM


# -- embeddings --------------------------------------------------------------


def test_images_are_embedded_in_order_with_their_views(fresh, toys):
    loader = [toys.batch('day', 'night'), toys.batch('fog')]
    plain = fresh.embed_images(loader)
    fog = fresh.data_preprocessor(toys.batch('fog'))['inputs']
    torch.testing.assert_close(plain[2:], fresh.embedder(fresh.backbone, fog))
    fresh.gate = PrototypeGate(
        'mahalanobis', perturbation_weight=0.5, perturbations=['light'])
    assert fresh.gate.num_views == 2
    views = fresh.embed_images(loader)
    assert views.shape == (3, 2, plain.shape[1])
    assert torch.equal(views[:, 0], plain)
    images = [
        perturbed_image(image, 0, ['light']) for batch in loader
        for image in batch['inputs']
    ]
    copies = fresh.data_preprocessor(dict(inputs=images))['inputs']
    torch.testing.assert_close(views[:, 1],
                               fresh.embedder(fresh.backbone, copies))


def test_embedding_changes_nothing_and_nothing_changes_it(fresh, toys):
    batches, state = toys.loader('day'), torch.get_rng_state()
    before = fresh.embed_images(
        torch.utils.data.DataLoader(batches, batch_size=None))
    assert torch.equal(torch.get_rng_state(), state)
    fresh.begin_task(toys.task('day'), batches)
    toys.train(fresh, 'day')
    assert torch.equal(fresh.embed_images(batches), before)
    assert fresh.training and fresh.backbone.training


@pytest.mark.parametrize('held', [('day', 'night', 'fog'), ('day', 'night'),
                                  ('day', )])
def test_images_of_several_processes_come_out_in_order(monkeypatch, fresh,
                                                       toys, held):
    whole = fresh.embed_images([toys.batch(name) for name in held])
    # this process has the first and the third image, another the second
    monkeypatch.setattr(expert_segmentor, 'all_gather_object',
                        lambda mine: [mine, whole[1::2]])
    mine = [toys.batch(name) for name in held[::2]]
    assert torch.equal(fresh.embed_images(mine), whole)
    # or none
    monkeypatch.setattr(expert_segmentor, 'all_gather_object',
                        lambda mine: [whole[:1], mine])
    assert torch.equal(fresh.embed_images([]), whole[:1])


def test_embedder_that_does_not_fit_is_refused_before_training(
        monkeypatch, toys):
    # alone: another process may have no image
    monkeypatch.setattr(expert_segmentor, 'all_gather_object', None)
    model = toys.model(gate=dict(type='AutoencoderGate', hidden=8))
    with pytest.raises(ValueError, match='gate.hidden 8 must be less than'):
        model.begin_task(toys.task('day'), toys.loader('day'))
    assert model.expert_names == () and not model.backbone.experts.names
