# SPDX-License-Identifier: Apache-2.0
"""Where a new expert of ``ExpertSegmentor`` starts."""
from __future__ import annotations

import pytest
import torch


def start_of(model, toys, name, **fields):
    """Begin a task; name the experts that its adapter equals."""
    model.begin_task(toys.task(name, **fields), toys.loader(name))
    mine = model.backbone.experts[name].lora
    return [
        other for other in model.expert_names if all(
            torch.equal(mine[key], value)
            for key, value in model.backbone.experts[other].lora.items())
    ]


@pytest.fixture
def two(toys, fresh):
    """A model that learned day and night."""
    toys.learn(fresh, 'day')
    toys.learn(fresh, 'night')
    return fresh


def test_start_from_the_base_equals_it(two, toys):
    assert start_of(two, toys, 'fog', init_from='base') == []
    lora = two.backbone.experts['fog'].lora
    assert not any(v.any() for k, v in lora.items() if 'lora_B' in k)


@pytest.mark.parametrize('init_from, source', [
    ('previous', 'night'), ('night', 'night'), ('day', 'day'),
    ('nearest', 'day'),
])  # yapf: disable
def test_start_from_an_expert_copies_it(two, toys, init_from, source):
    # fog is bright, like day
    assert start_of(two, toys, 'fog', init_from=init_from) == [source]


def test_setting_of_the_model_holds_where_the_task_has_none(two, toys):
    two.init_from = 'previous'
    assert start_of(two, toys, 'fog') == ['night']


@pytest.mark.parametrize('init_from', ['base', 'previous', 'nearest'])
def test_first_task_starts_from_the_base(toys, fresh, init_from):
    assert start_of(fresh, toys, 'day', init_from=init_from) == []


def test_unknown_start_is_refused_with_what_is_allowed(two, toys):
    with pytest.raises(
            ValueError,
            match=r"init_from of task 'fog' .*'previous'.*'day', 'night'.*"
            "'snow'"):
        start_of(two, toys, 'fog', init_from='snow')
    assert 'fog' not in two.backbone.experts


def test_unknown_start_is_refused_before_any_training(fresh, toys):
    tasks = [toys.task('day'), toys.task('night', init_from='fog')]
    with pytest.raises(ValueError, match="of task 'night' .*got 'fog'"):
        fresh.check_stream(tasks)
    fresh.check_stream([toys.task('fog'), *tasks])


def test_task_cannot_start_from_itself(two, toys):
    with pytest.raises(ValueError, match="got 'fog'"):
        start_of(two, toys, 'fog', init_from='fog')


def test_nearest_start_needs_a_gate_with_distances(toys):
    model = toys.model(gate=dict(type='LastGate'))
    toys.learn(model, 'day')
    with pytest.raises(ValueError, match='LastGate has not: use Prototype'):
        start_of(model, toys, 'night', init_from='nearest')


def test_images_are_embedded_once_for_a_nearest_start(two, toys):
    batches, embed = [], two.embedder
    two.embedder = lambda backbone, x: (batches.append(1), embed(backbone, x))[
        1]
    toys.learn(two, 'fog', init_from='nearest')
    assert len(batches) == len(toys.loader('fog'))


def test_norms_and_head_start_from_the_expert_too(two, toys):
    start_of(two, toys, 'fog', init_from='night')
    norm = two.backbone.experts['night'].norm
    assert all(
        torch.equal(two.backbone.experts['fog'].norm[k], v)
        for k, v in norm.items())
    head = two.heads['night'].state
    mine = two.decode_head.state_dict()
    shared = [k for k in head if not k.startswith('conv_seg')]
    assert shared and all(torch.equal(mine[k], head[k]) for k in shared)


def test_rows_of_the_head_follow_the_names_of_classes(two, toys):
    drawn = two.new_head(3).conv_seg.weight
    # night: sky, road, lamp; fog: road, mist, lamp
    start_of(two, toys, 'fog', init_from='night')
    weight = two.decode_head.conv_seg.weight
    known = two.heads['night'].state['conv_seg.weight']
    assert torch.equal(weight[0], known[1])
    assert torch.equal(weight[2], known[2])
    assert not any(torch.equal(weight[1], row) for row in known)
    assert drawn.shape == weight.shape


def test_training_the_new_head_leaves_the_old_one_alone(two, toys):
    before = {k: v.clone() for k, v in two.heads['night'].state.items()}
    toys.learn(two, 'fog', init_from='night')
    after = two.heads['night'].state
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_fused_start_mixes_the_neighbours(toys, fresh):
    same = ('road', 'sky')
    for name in ('day', 'night'):
        toys.learn(fresh, name, classes=same)
    fresh.begin_task(
        toys.task('fog', init_from='fused', classes=same), toys.loader('fog'))
    weights = fresh.gate.neighbours(fresh._embeddings)
    assert weights['day'] > weights['night'] > 0
    experts = fresh.backbone.experts
    assert start_of_norm(experts, weights)
    state = fresh.decode_head.state_dict()
    for key in ('conv_seg.weight', 'convs.0.conv.weight'):
        wanted = sum(w * fresh.heads[n].state[key] for n, w in weights.items())
        torch.testing.assert_close(state[key], wanted)


def start_of_norm(experts, weights):
    """Whether the norm layers of fog are the weighted mean of the others'."""
    return all(
        torch.allclose(
            value, sum(w * experts[n].norm[key] for n, w in weights.items()))
        for key, value in experts['fog'].norm.items()
        if value.is_floating_point())


def test_expert_with_a_fused_start_can_be_trained(two, toys):
    toys.learn(two, 'fog', init_from='fused')
    assert two.expert_names == ('day', 'night', 'fog')


def test_fused_start_with_one_neighbour_copies_it(toys, fresh):
    toys.learn(fresh, 'day')
    assert start_of(fresh, toys, 'night', init_from='fused') == ['day']


def test_fused_start_needs_a_gate_with_distances(toys):
    model = toys.model(gate=dict(type='LastGate'))
    with pytest.raises(ValueError, match="init_from='fused' asks the gate"):
        model.check_stream(
            [toys.task('day'),
             toys.task('night', init_from='fused')])
